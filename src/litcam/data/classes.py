"""Classes by name: which class of a model each class of a dataset is. Knows no dataset and no model."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from litcam.data.finding import composed
from litcam.errors import InputError

_SHOWN = 10  # classes in a sentence
_NUMBER = re.compile(r"\d{3}\.(?=[^\W\d_])")  # of CUB's folders: 001.Black_footed_Albatross


@dataclass(frozen=True)
class Classes:
    """The classes of a model or a dataset, by index.

    Attributes:
        names: what people call them.
        ids: what tells them apart: the names themselves, or what a dataset has for it, such as ImageNet's synsets.
    """

    names: tuple[str, ...]
    ids: tuple[str, ...]

    @classmethod
    def of(cls, owner: Any) -> "Classes | None":
        """Those of a model, its ``class_names`` and ``class_ids``; None where it has no names."""
        names = getattr(owner, "class_names", None)
        return None if names is None else cls.named(names, getattr(owner, "class_ids", None))

    @classmethod
    def named(cls, names: Sequence[str], ids: Sequence[str] | None = None) -> "Classes":
        """Those of these names, which tell them apart too where there is nothing better."""
        return cls(tuple(map(composed, names)), tuple(map(composed, names if ids is None else ids)))

    def __str__(self) -> str:
        return _some(self.names)

    def check_distinct(self) -> None:
        """Raise InputError if two classes are the same."""
        twice = [name for name, count in Counter(self.ids).items() if count > 1]
        if twice:
            raise InputError(
                f"Several classes of the data have the name {_some(twice, repr)}: labels by name need one each."
            )


@dataclass(frozen=True)
class ClassMap:
    """Which of a model's classes each class of a dataset is.

    Attributes:
        data: the dataset's classes.
        model: the model's.
        indices: for each class of the dataset the index of the model's, or None where the model does not know it.
        by_name: false where the model keeps no names, and places are all there is.
    """

    data: Classes
    model: Classes
    indices: tuple[int | None, ...]
    by_name: bool = True

    @property
    def changes(self) -> bool:
        """Whether a class has another index in the data than in the model, or one of them lacks it."""
        return self.indices != tuple(range(len(self.model.ids)))

    @property
    def unknown(self) -> list[str]:
        """The names of the data's classes that the model does not know."""
        return [name for name, known in zip(self.data.names, self.indices, strict=True) if known is None]

    def unknown_sentence(self, unknown: Sequence[str]) -> str:
        """That the model does not know these of the data's classes, what it knows, and what is spelt much like them."""
        lower = {name.casefold(): name for name in self.model.names}

        def shown(name: str) -> str:
            close = get_close_matches(name.casefold(), lower, n=1, cutoff=0.8)
            return repr(name) + (f" (did you mean {lower[close[0]]!r}?)" if close else "")

        noun = "class" if len(unknown) == 1 else "classes"
        return f"The model does not know the {noun} {_some(unknown, shown)}; it knows {self.model}"

    def sentence(self) -> str:
        """What to tell the user of the match; nothing where the two agree."""
        if not self.by_name:
            return by_place_sentence(self.data.names)
        pairs = [(ours, theirs) for ours, theirs in enumerate(self.indices) if theirs is not None]
        known = [theirs for _, theirs in pairs]
        renamed = [
            f"{self.data.ids[ours]} is the model's {self.model.ids[theirs]}"
            for ours, theirs in pairs
            if self.data.ids[ours] != self.model.ids[theirs]
        ]
        if not self.changes and not renamed:
            return ""
        parts = [f"the data have {len(known)} of the model's {len(self.model.ids)}"]
        parts += [f"and {len(self.unknown)} that it does not know"] if self.unknown else []
        parts += ["in another order"] if known != sorted(known) else []
        parts += [_some(renamed)] if renamed else []
        return f"Classes are matched by name: {', '.join(parts)}."


def take_by_place(data: Classes, size: int | None) -> ClassMap:
    """The map of a model that keeps no names: class i is class i.

    Args:
        data: the dataset's classes.
        size: how many classes the model has; None if it does not say.

    Raises:
        InputError: if it has another number of classes, or two classes of the data are the same.
    """
    data.check_distinct()
    count = len(data.ids)
    if size not in (None, count):
        raise InputError(
            f"The model has {size} classes and keeps no names of them, but the data have {count} "
            f"({data}), so nobody can tell which is which; name the data that it was trained on."
        )
    return ClassMap(data, data, tuple(range(count)), by_name=False)


def match_classes(data: Classes, model: Classes) -> ClassMap:
    """Match the classes of a dataset and a model by what tells them apart.

    Where one of the two has names alone, names are compared; and where names carry the numbers of CUB's folders
    (``001.Black_footed_Albatross``), what follows these.

    Raises:
        InputError: if two classes of the data are the same.
    """
    data.check_distinct()
    found: list[int | None] = [None] * len(data.ids)
    for ours, theirs in (
        (data.ids, model.ids),
        (data.names, model.names),
        (_without_numbers(data.names), _without_numbers(model.names)),
    ):
        by_word = _places(theirs)
        for word, index in _places(ours).items():
            place = by_word.get(word)
            if found[index] is None and place is not None and place not in found and _same(data, index, model, place):
                found[index] = place
    return ClassMap(data, model, tuple(found))


def check_training(data: Classes, model: Classes | None, size: int | None) -> None:
    """Raise InputError unless a model can be trained on the classes of the data: all that it has, and no others.

    Args:
        data: the dataset's classes.
        model: the model's; None before its first training.
        size: how many classes the model has; None if it does not say.
    """
    data.check_distinct()
    if model is None:
        count = len(data.ids)
        if size not in (None, count):
            raise InputError(f"The model has {size} classes, but the data {count}: --model.num_classes {count}.")
        return
    found = match_classes(data, model)
    missing = [name for index, name in enumerate(model.names) if index not in found.indices]
    if found.unknown or missing:
        lacking = f"The data lack {_some(missing, repr)}, which the model has learnt"
        raise InputError(
            f"{found.unknown_sentence(found.unknown) if found.unknown else lacking}: a training goes on with the "
            "classes that it began with; to learn others, start one anew from the weights: --model.pretrained."
        )


def by_place_sentence(names: Sequence[str]) -> str:
    """That a model keeps no names of its classes, and what they are taken for."""
    places = _some([f"{index} is {name}" for index, name in enumerate(names)])
    return f"The model keeps no names of its classes: they are taken by place, {places}."


def _same(data: Classes, index: int, model: Classes, place: int) -> bool:
    """Whether equal names mean the same class: not where both have something better that differs."""
    plain = data.names[index] == data.ids[index] or model.names[place] == model.ids[place]
    return plain or data.ids[index] == model.ids[place]


def _places(words: Sequence[str]) -> dict[str, int]:
    """The place of each word that occurs once."""
    counts = Counter(words)
    return {word: place for place, word in enumerate(words) if counts[word] == 1}


def _without_numbers(names: Sequence[str]) -> list[str]:
    """Names as CUB's data module has them, where they are those of its folders."""
    return [name[4:].replace("_", " ") if _NUMBER.match(name) else name for name in names]


def _some(names: Sequence[str], shown: Callable[[str], str] = str) -> str:
    """Names one after the other, so many that they are still a sentence."""
    more = f", … ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(map(shown, names[:_SHOWN])) + more
