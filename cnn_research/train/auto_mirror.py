"""Whether a user's images may be mirrored: by the names of their classes, and by what some show."""

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
"""Words in the names of classes that mirror images do not belong to: sides, and what is written."""
DEVIATIONS = 3
"""Standard deviations by which more mirror images have to be known less well than better."""


def may_mirror(seen: Survey) -> tuple[bool, str]:
    """Whether mirror images are as good as the images, and the reason."""
    names = {name for counts in seen.classes.values() for name in counts}
    sided = [name for name in names if any(map(ONE_SIDED.fullmatch, _words(name)))]
    if sided:
        return False, f"a class is called '{min(sided)}': no mirror images"
    written = [name for name in names if len(name) == 1 or name.isdecimal()]
    if names and 2 * len(written) >= len(names):
        return False, "classes are single characters or numbers: no mirror images"
    # Were both as likely, their difference would have the standard deviation of a coin's tosses.
    worse, better = seen.mirrored
    told = f"{worse:,} mirror images look less like their class than the images do, {better:,} more"
    if worse - better > DEVIATIONS * math.sqrt(worse + better):
        return False, f"left and right matter: of a sample, {told}"
    return True, f"left and right do not seem to matter: of a sample, {told}"


def choose_mirror(choices: Choices, mirror: bool, reason: str) -> bool:
    """Choose whether images are mirrored, in training and evaluation; return if in training."""
    mirror = choices.choose("augmentation.mirror", mirror, reason)
    reason = "answers are averaged over both" if mirror else "training images are not mirrored"
    choices.choose("evaluation.mirror", mirror, reason)
    return mirror


def _words(name: str) -> list[str]:
    """The words of a name such as `turn_left`, `Turn left (ahead)` or `turnLeft`, in lower case."""
    return re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
