"""The five documents in Spanish whose systems the experiments implement."""

from cnn_research.core.experiment import Document

PALETTE = Document(
    "palette paper",
    "Rodolfo Armando Jaramillo Ruiz: Redes neuronales convolucionales (Matemáticas, Redes "
    "Neuronales), 2023",
)
CONVOLUTION = Document(
    "convolution lecture",
    "Irina Arévalo: Redes neuronales y aprendizaje profundo, Tema 2: Redes neuronales "
    "convolucionales, undated slides",
)
PAINTERS = Document(
    "painters paper",
    "Juan Manuel García Criado and Fernando Miguel Hidalgo Aguilar: Redes neuronales "
    "convolucionales: una aplicación práctica a obras de arte, Universidad de Sevilla, undated",
)
CLASSIFIERS = Document(
    "classifier lecture",
    "Modelos de clasificación de imágenes (Visión por Computador II), anonymous, undated slides",
)
FASHION_MNIST = Document(
    "Fashion-MNIST paper",
    "Camila Chediack Ciminari: Red neuronal profunda y convolucional para clasificar imágenes "
    "(Trabajo Final Integrador), Universidad Nacional de Córdoba, 2022",
)
