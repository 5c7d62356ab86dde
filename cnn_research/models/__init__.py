"""Models: flax.linen modules, each of which is its own config.

Every module takes `images`, float32 `[batch, height, width, channels]`, and `train`, and returns
float32 logits `[batch, num_classes]`. A task sets `num_classes` from the data.
"""

from cnn_research.models.airbench import Airbench
from cnn_research.models.alexnet import AlexNet
from cnn_research.models.cifar_resnet import CifarResNet
from cnn_research.models.convnet import ConvNet
from cnn_research.models.googlenet import GoogLeNet
from cnn_research.models.inception_v3 import InceptionV3
from cnn_research.models.lenet import LeNet5
from cnn_research.models.mlp import MLP
from cnn_research.models.mobilenet import MobileNetV1
from cnn_research.models.palette_net import PaletteNet
from cnn_research.models.resnet import ResNet
from cnn_research.models.resnet9 import ResNet9
from cnn_research.models.ss_cnn import SSCNN
from cnn_research.models.vgg import VGG
from cnn_research.models.wide_resnet import WideResNet
