"""Decides from class names and a sample of images whether a user's images may be mirrored."""

from __future__ import annotations

import math
import re

from cnn_research.core.experiment import Choices
from cnn_research.data.sources.survey import Survey

ONE_SIDED = re.compile(
    r"left|right|links|rechts|izquierd[ao]|derech[ao]|gauche|droite|sinistra|destra|esquerda|direita"
    r"|speed|limit|tempolimit|velocidad|vitesse|kmh|mph|letters?|letras?|digits?|d[ií]gitos?"
    r"|buchstabe|ziffer"
)
"""Words in class names that rule out mirror images: sides and writing."""
DEVIATIONS = 3
"""Excess of mirror images that fit their class less well, in standard deviations, above which
images are not mirrored."""


def may_mirror(seen: Survey) -> tuple[bool, str]:
    """Return whether mirror images are valid training images, and the reason."""
    names = {name for counts in seen.classes.values() for name in counts}
    sided = [name for name in names if any(map(ONE_SIDED.fullmatch, _words(name)))]
    if sided:
        return False, f"no mirror images, as a class is called '{min(sided)}'"
    written = [name for name in names if len(name) == 1 or name.isdecimal()]
    if names and 2 * len(written) >= len(names):
        return False, "no mirror images, as classes are single characters or numbers"
    # If both are equally likely, the difference has the standard deviation of coin tosses.
    worse, better = seen.mirrored
    counts = f"{worse:,} mirror images fit their class less well than the image, {better:,} better"
    if worse - better > DEVIATIONS * math.sqrt(worse + better):
        return False, f"left and right matter: in a sample, {counts}"
    return True, f"left and right do not seem to matter: in a sample, {counts}"


def choose_mirror(choices: Choices, mirror: bool, reason: str) -> bool:
    """Choose whether to mirror in training and evaluation; return the choice for training."""
    mirror = choices.choose("augmentation.mirror", mirror, reason)
    reason = "predictions are averaged over both" if mirror else "training images are not mirrored"
    choices.choose("evaluation.mirror", mirror, reason)
    return mirror


def _words(name: str) -> list[str]:
    """Split a name such as `turn_left`, `Turn left (ahead)` or `turnLeft` into lower-case words."""
    return re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
