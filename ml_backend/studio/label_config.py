"""A project's labelling config: which image, which control, which classes.

`parse_label_config` reads the XML once, at the edge; everything else passes the frozen
`LabelConfig` around. `bitmask_config` and `brush_config` write the XML of a new project.
"""

from __future__ import annotations

import colorsys
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree import ElementTree  # nosec B405  # see _NoDocumentType

from ml_backend.errors import NextsliceError

__all__ = [
    "BACKGROUND_NAMES",
    "WHY",
    "LabelConfig",
    "LabelConfigError",
    "MaskKind",
    "Policy",
    "ShapeControl",
    "ShapeKind",
    "Unlabelled",
    "bitmask_config",
    "brush_config",
    "data_fields",
    "explain_change",
    "label_colour",
    "parse_label_config",
    "shows_why",
    "with_drags",
]

MaskKind = Literal["brush", "bitmask"]
ShapeKind = Literal["polygon", "rectangle", "ellipse"]
Policy = Literal["ignore", "background"]
Unlabelled = Literal["auto", "ignore", "background"]

BACKGROUND_NAMES = ("background", "bg")
"""A label of one of these names, in any case, is class 0."""

_READING = 2
"""Another number makes every project render its masks anew, once: faint masks, prompts, controls
that are gone."""
_MOST_CLASSES = 255  # class indices are uint8 and 255 means "nobody labelled this"
_MASK_TAGS: dict[str, MaskKind] = {"brushlabels": "brush", "bitmasklabels": "bitmask"}
_SHAPE_TAGS: dict[str, ShapeKind] = {
    "polygonlabels": "polygon",
    "rectanglelabels": "rectangle",
    "ellipselabels": "ellipse",
}
WHY = "why"
"""Field of a task's data in which annotators are told why they get the slice."""

_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
"""Okabe and Ito's: told apart with any colour vision, on grey too. Black is left out: slices are
dark."""

_DRAGS = "fix"
"""The name of the control for drags in new configs."""
_WITHIN = re.compile(r"[.\[]")
_PATH_STEP = re.compile(r"\[[0-9]+|[\w-]+")


class LabelConfigError(NextsliceError, ValueError):
    """A labelling config that nextslice cannot work with, and what to change in it."""


@dataclass(frozen=True)
class ShapeControl:
    """A control that draws outlines: its kind, its name and its label names in order."""

    kind: ShapeKind
    name: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class LabelConfig:
    """What a labelling config says about segmentation.

    ``image_name``: the Image tag's name; ``value_field``: the task's data field that holds the
    image's address (``$image`` → ``"image"``; nested fields keep their dots and brackets, see
    `image_of`). ``kind``,
    ``from_name``, ``to_name``: the control that paints masks. ``classes``: at most 255 names, index
    0 is the background: the label called background or bg (in any case), wherever it stands, or,
    where there is none (``has_background_label`` False), an implicit class ``"background"`` that
    nobody can paint; the other labels follow in the config's order. ``aliases``: (alias, class
    name); Label Studio writes the alias into results where a label has one. ``shapes``: the
    polygon, rectangle and ellipse controls of the same image. ``controls``: the names of all
    controls, whatever they are for. ``prompts``: of those that draw nothing but prompts for
    interactive predictions (``smartOnly``); ``smart``: of those that draw labels or prompts, which
    cannot be told apart in a result. The control that paints masks is in neither. ``needed``: the
    data fields that Label Studio wants of a task that is imported: what tags with a name show.
    """

    image_name: str
    value_field: str
    kind: MaskKind
    from_name: str
    to_name: str
    classes: tuple[str, ...]
    has_background_label: bool
    aliases: tuple[tuple[str, str], ...] = ()
    shapes: tuple[ShapeControl, ...] = ()
    controls: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    smart: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes that can be painted, in class order."""
        return self.classes if self.has_background_label else self.classes[1:]

    @property
    def plain_field(self) -> bool:
        """Whether the image stands in a field of the data itself, not within one."""
        return not _WITHIN.search(self.value_field)

    def image_of(self, data: Mapping[str, Any]) -> Any:
        """What stands in ``value_field`` of a task's data, None where nothing does.

        As Label Studio's page looks it up (lodash's get): a key of that very name, else step by
        step, numbers counting from 0 in lists.
        """
        if self.value_field in data:
            return data[self.value_field]
        found: Any = data
        for step in _steps(self.value_field):
            if isinstance(found, Mapping):
                found = found.get(step)
            elif isinstance(found, list) and step.isdecimal():
                found = found[int(step)] if int(step) < len(found) else None
            else:
                return None
        return found

    def data_of(self, image: str) -> dict[str, Any]:
        """Data of a task that shows ``image``: ``{"meta": {"image": …}}`` for ``meta.image``; what
        else is ``needed`` is there and empty."""
        found: Any = image
        for step in reversed(_PATH_STEP.findall(self.value_field)):
            found = [found] * (int(step[1:]) + 1) if step[0] == "[" else {step: found}
        for field in self.needed:
            path, indexed, _ = field.partition("[")
            *outer, last = path.split(".")
            within = found
            for step in outer:
                within = within.setdefault(step, {}) if isinstance(within, dict) else None
            if isinstance(within, dict):
                within.setdefault(last, [] if indexed else "")
        return dict(found)

    def class_index(self, label: str) -> int | None:
        """The class of a label's name or alias, None for one that this config does not have."""
        name = dict(self.aliases).get(label, label)
        return self.classes.index(name) if name in self.labels else None

    def result_label(self, index: int) -> str:
        """How Label Studio's results name class ``index``: its alias, else its name."""
        name = self.classes[index]
        return next((alias for alias, of in self.aliases if of == name), name)

    def unlabelled(self, setting: Unlabelled = "auto") -> Policy:
        """What a pixel that nobody labelled teaches.

        ``auto``: nothing (``"ignore"``) where people can paint background, ``"background"`` where
        they cannot. Any other setting is the answer itself.
        """
        if setting == "auto":
            return "ignore" if self.has_background_label else "background"
        if setting not in ("ignore", "background"):
            raise LabelConfigError(
                f"unlabelled pixels: expected auto, ignore or background, found {setting!r}"
            )
        return setting

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change exactly when `explain_change` has something to say."""
        return hashlib.sha256(json.dumps(self._identity()).encode()).hexdigest()[:16]

    @property
    def reading(self) -> str:
        """16 hexadecimal digits of how regions are read beside that: when they change, masks that
        were rendered before are out of date, and a model is not."""
        controls = (sorted(self.controls), sorted(self.prompts), sorted(self.smart))
        how = (_READING, *controls, sorted(self.aliases))
        return hashlib.sha256(json.dumps(how).encode()).hexdigest()[:16]

    def _identity(self) -> tuple[object, ...]:
        return (
            self.classes,
            self.has_background_label,
            self.kind,
            self.from_name,
            self.to_name,
            self.value_field,
        )


def parse_label_config(xml: str) -> LabelConfig:
    """Read a project's ``label_config``.

    Tag and attribute names are read in any case, as Label Studio does. No document type and so no
    entity is accepted. Raises LabelConfigError, which says what to change, for malformed XML, and
    unless there is exactly one Image tag and exactly one BrushLabels or BitmaskLabels that points
    to it, with labels of different names.
    """
    root = _parse_xml(xml)
    image_name, value_field = _image(root)
    control, kind = _mask_control(root)
    from_name = _required(control, "name")
    to_name = _required(control, "toname")
    if to_name != image_name:
        raise LabelConfigError(
            f'{control.tag} "{from_name}" points to "{to_name}", the Image tag is called '
            f'"{image_name}": set toName="{image_name}"'
        )
    names, aliases = _labels(control)
    classes, has_background = _classes(names, control.tag)
    outlines = [one for one in _controls(root) if one is not control]
    return LabelConfig(
        image_name=image_name,
        value_field=value_field,
        kind=kind,
        from_name=from_name,
        to_name=to_name,
        classes=classes,
        has_background_label=has_background,
        aliases=aliases,
        shapes=tuple(_shape_controls(root, image_name)),
        controls=tuple(_name(one) for one in _controls(root)),
        prompts=tuple(_name(one) for one in outlines if _says(one, "smartonly")),
        smart=tuple(
            _name(one) for one in outlines if _says(one, "smart") and not _says(one, "smartonly")
        ),
        needed=tuple(_needed(root)),
    )


def data_fields(data: Mapping[str, Any]) -> Iterator[str]:
    """The fields of a task's data, as a labelling config would name them: ``image``,
    ``meta.image``, ``images[0]``."""
    for name, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from (f"{name}.{inner}" for inner in data_fields(value))
        elif isinstance(value, list) and value:
            first = value[0]
            inner = data_fields(first) if isinstance(first, Mapping) and first else ()
            yield from [f"{name}[0].{one}" for one in inner] or [f"{name}[0]"]
        else:
            yield str(name)


def explain_change(old: LabelConfig, new: LabelConfig) -> str | None:
    """What changed between two configs that a model or its predictions depend on, in a sentence.

    None when nothing did: colours, hints, titles, hotkeys, aliases, outline controls and layout are
    harmless. A class counts as renamed when the number of classes is the same and its place is.
    Only changes of ``classes`` or ``has_background_label`` make a trained model useless; the others
    mean that predictions or images go elsewhere.
    """
    if old._identity() == new._identity():
        return None
    changes = list(_class_changes(old, new))
    if old.kind != new.kind:
        changes.append(f"masks are painted as {new.kind} instead of {old.kind}")
    for what, before, after in (
        ("control", old.from_name, new.from_name),
        ("image tag", old.to_name, new.to_name),
        ("image's data field", old.value_field, new.value_field),
    ):
        if before != after:
            changes.append(f'the {what} is called "{after}" instead of "{before}"')
    return "The labelling config changed: " + "; ".join(changes) + "."


def bitmask_config(classes: Sequence[str], *, why: bool = False) -> str:
    """The labelling config of a new project that paints bitmasks, and can be dragged on.

    ``classes``: the labels' names in order. Leave the background out to make it implicit: then
    whatever is not painted is background. ``why``: above the slice stands what the task's data say
    in `WHY`.
    Raises LabelConfigError for no name, an empty one or one given twice.
    """
    return _new_config("BitmaskLabels", classes, why=why)


def brush_config(classes: Sequence[str], *, why: bool = False) -> str:
    """As `bitmask_config`, with BrushLabels."""
    return _new_config("BrushLabels", classes, why=why)


def shows_why(xml: str) -> bool:
    """Whether a labelling config shows `WHY` of a task's data, in whatever tag."""
    return f'"${WHY}"' in xml


def with_drags(xml: str) -> str:
    """``xml`` with what dragging over wrong places needs, and nothing else changed; the same text
    where it is there already.

    A rectangle that is nothing but a prompt, without a label: what is answered would get it. And
    the control that paints masks is not ``smart`` any more, or a brush that asks for nothing would
    come first among the tools of the key M. Raises LabelConfigError for a config that cannot be
    segmented, or into which the lines cannot be put.
    """
    config = parse_label_config(xml)
    if config.prompts:
        return xml
    name = next(
        n for n in (_DRAGS, *(f"{_DRAGS}{i}" for i in range(2, 99))) if n not in config.controls
    )
    tag = {kind: tag for tag, kind in _MASK_TAGS.items()}[config.kind]
    found = re.sub(
        rf"(?is)<{tag}\b(?![^>]*\bsmart\s*=)[^>]*?(?=/?>)", r'\g<0> smart="false"', xml, count=1
    )
    line = f'<Rectangle name="{name}" toName="{config.to_name}" smart="true" smartOnly="true"/>'
    found = re.sub(rf"(?i)^([ \t]*)(.*</{tag}\s*>)", rf"\1\2\n\1{line}", found, count=1, flags=re.M)
    changed = parse_label_config(found)
    silent = _mask_control(_parse_xml(found))[0].get("smart") is not None
    if not silent or changed.prompts != (name,) or explain_change(config, changed):
        raise LabelConfigError(
            "the lines for drags cannot be put into this labelling config: say "
            f'smart="false" in its {tag} tag and add {line} below it'
        )
    return found


class _NoDocumentType(ElementTree.TreeBuilder):
    """Without a document type there are no entities: nothing to fetch, nothing to expand."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise LabelConfigError(
            "the labelling config has a document type (<!DOCTYPE …>): remove it, Label Studio's "
            "configs need none"
        )


def _parse_xml(xml: str) -> ElementTree.Element:
    if not xml or not xml.strip():
        raise LabelConfigError(
            "the project has no labelling config yet: set one under Settings → Labeling Interface"
        )
    parser = ElementTree.XMLParser(target=_NoDocumentType())  # nosec B314  # no entities
    try:
        parser.feed(xml)
        root: ElementTree.Element = parser.close()
    except (ElementTree.ParseError, UnicodeEncodeError) as error:
        raise LabelConfigError(f"the labelling config is not well-formed XML: {error}") from error
    for element in root.iter():
        for name in list(element.keys()):
            element.set(name.lower(), element.attrib.pop(name))
    return root


def _required(element: ElementTree.Element, attribute: str) -> str:
    value = (element.get(attribute) or "").strip()
    if not value:
        shown = {"toname": "toName"}.get(attribute, attribute)
        raise LabelConfigError(f'the {element.tag} tag has no {shown}: add {shown}="…"')
    return value


def _tags(root: ElementTree.Element, *names: str) -> list[ElementTree.Element]:
    return [element for element in root.iter() if element.tag.lower() in names]


def _image(root: ElementTree.Element) -> tuple[str, str]:
    """Name and data field of the one Image tag."""
    images = _tags(root, "image")
    if not images:
        raise LabelConfigError(
            'the labelling config has no Image tag: add <Image name="image" value="$image"/>'
        )
    if len(images) > 1:
        found = ", ".join(f'"{image.get("name", "")}"' for image in images)
        raise LabelConfigError(
            f"the labelling config shows {len(images)} images ({found}), nextslice works on one "
            "slice a task: keep one Image tag"
        )
    name = _required(images[0], "name")
    if images[0].get("valuelist"):
        raise LabelConfigError(
            f'Image "{name}" shows a list of images (valueList), nextslice works on one slice a '
            'task: use value="$image"'
        )
    value = _required(images[0], "value")
    field = re.fullmatch(r"\$([\w-]+(?:\.[\w-]+|\[[0-9]{1,4}\])*)", value)
    if not field:
        raise LabelConfigError(
            f'Image "{name}" has value="{value}", expected one data field such as value="$image", '
            "$meta.image or $images[0]"
        )
    return name, field[1]


def _mask_control(root: ElementTree.Element) -> tuple[ElementTree.Element, MaskKind]:
    controls = _tags(root, *_MASK_TAGS)
    if not controls:
        present = sorted({e.tag for e in _tags(root, "brush", "bitmask", *_SHAPE_TAGS)})
        beside = f" (it has {', '.join(present)}, which is not enough)" if present else ""
        raise LabelConfigError(
            f"the labelling config has no control that paints labelled masks{beside}: add "
            '<BitmaskLabels name="label" toName="image"> or BrushLabels with one Label per class'
        )
    if len(controls) > 1:
        found = ", ".join(f'{c.tag} "{c.get("name", "")}"' for c in controls)
        raise LabelConfigError(
            f"the labelling config has {len(controls)} controls that paint masks ({found}): keep "
            "one, so that each class has one place"
        )
    return controls[0], _MASK_TAGS[controls[0].tag.lower()]


def _labels(control: ElementTree.Element) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    """Label names in order, and (alias, name) of those that have an alias."""
    if (control.get("value") or "").startswith("$"):
        raise LabelConfigError(
            f'{control.tag} "{control.get("name")}" takes its labels from task data '
            f"({control.get('value')}): a model needs fixed classes, list them as Label tags"
        )
    labels = _tags(control, "label")
    for label in labels:
        _required(label, "value")
    names = [label.get("value", "") for label in labels]  # as written: results repeat every space
    aliases = [(label.get("alias") or "", name) for label, name in zip(labels, names, strict=True)]
    return names, tuple((alias, name) for alias, name in aliases if alias and alias != name)


def _classes(names: Sequence[str], where: str) -> tuple[tuple[str, ...], bool]:
    """Class names with the background first, and whether it is one of the labels."""
    if not names:
        raise LabelConfigError(f"{where} has no labels: add one Label per class")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise LabelConfigError(f"{where} has labels of the same name ({', '.join(twice)})")
    background = [name for name in names if name.casefold() in BACKGROUND_NAMES]
    if len(background) > 1:
        raise LabelConfigError(
            f"{where} has {len(background)} labels for the background ({', '.join(background)}): "
            "keep one"
        )
    others = [name for name in names if name not in background]
    if not others:
        raise LabelConfigError(
            f"{where} has no label but the background ({background[0]}): add one Label per class"
        )
    classes = (background[0] if background else BACKGROUND_NAMES[0], *others)
    if len(classes) > _MOST_CLASSES:
        raise LabelConfigError(
            f"{where} makes {len(classes)} classes with the background, at most {_MOST_CLASSES} fit"
        )
    return classes, bool(background)


def _shape_controls(root: ElementTree.Element, image_name: str) -> Iterator[ShapeControl]:
    for control in _tags(root, *_SHAPE_TAGS):
        if control.get("toname") == image_name:
            names, _ = _labels(control)
            kind = _SHAPE_TAGS[control.tag.lower()]
            yield ShapeControl(kind, _required(control, "name"), tuple(names))


def _steps(path: str) -> list[str]:
    return [step for step in re.split(r"[.\[\]]+", path) if step]


def _controls(root: ElementTree.Element) -> list[ElementTree.Element]:
    """The tags that make regions or say something of them."""
    return [one for one in root.iter() if _name(one) and one.get("toname")]


def _needed(root: ElementTree.Element) -> Iterator[str]:
    """As Label Studio tells them (its `extract_data_types`): of a text with several, the first."""
    for value in (one.get("value") or "" for one in root.iter() if _name(one)):
        within = re.search(r"\$(\w+)", value)
        if value.startswith("$") and len(value) > 1:
            yield value[1:]
        elif within:
            yield within[1]


def _name(element: ElementTree.Element) -> str:
    return (element.get("name") or "").strip()


def _says(element: ElementTree.Element, attribute: str) -> bool:
    return (element.get(attribute) or "").strip().lower() in ("true", "1")


def _class_changes(old: LabelConfig, new: LabelConfig) -> Iterator[str]:
    before, after = old.labels, new.labels
    if before == after and old.classes == new.classes:
        return
    if sorted(before) == sorted(after):
        yield f"the classes are in another order: {_listed(after)} instead of {_listed(before)}"
        return
    gone = [name for name in before if name not in after]
    come = [name for name in after if name not in before]
    if len(before) == len(after) and old.has_background_label == new.has_background_label:
        renamed = [(a, b) for a, b in zip(before, after, strict=True) if a in gone and b in come]
        for a, b in renamed:
            yield f'class "{a}" was renamed to "{b}"'
            gone.remove(a)
            come.remove(b)
    for what, names in (("added", come), ("removed", gone)):
        if names:
            yield f"{'class' if len(names) == 1 else 'classes'} {what}: {_listed(names)}"
    kept_before = [name for name in before if name in after]
    if kept_before != [name for name in after if name in before]:
        yield f"the classes are in another order: {_listed(after)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


_ONE_LINE = "font-size: 14px; line-height: 1.3; margin: 0 0 4px"
"""Of the sentence: so it, the classes and the slice are seen at once, without scrolling."""


def _new_config(tag: str, classes: Sequence[str], *, why: bool) -> str:
    names = [name.strip() for name in classes]
    if "" in names:
        raise LabelConfigError("a class has an empty name")
    _classes(names, "a new labelling config")
    view = ElementTree.Element("View")
    if why:  # without a name: so Label Studio does not ask for it in tasks that others import
        ElementTree.SubElement(view, "Header", value=f"${WHY}", size="5", style=_ONE_LINE)
    # Above the slice, which is made as high as the page: below it nobody sees them.
    control = ElementTree.SubElement(view, tag, name="label", toName="image", smart="false")
    for index, name in enumerate(names):
        ElementTree.SubElement(control, "Label", value=name, background=label_colour(index))
    # BitmaskLabels need smoothing="false", and it shows the pixels as they are for BrushLabels too.
    ElementTree.SubElement(
        view,
        "Image",
        name="image",
        value="$image",
        zoom="true",
        zoomControl="true",
        brightnessControl="true",
        contrastControl="true",
        smoothing="false",
    )
    ElementTree.SubElement(
        view, "Rectangle", name=_DRAGS, toName="image", smart="true", smartOnly="true"
    )
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def label_colour(index: int) -> str:
    """A colour for the label at ``index``, ``#RRGGBB``: Okabe & Ito's, then hues a golden angle
    apart. The same in Label Studio and wherever else a class is shown."""
    if index < len(_COLOURS):
        return _COLOURS[index]
    turn = index - len(_COLOURS)
    red, green, blue = colorsys.hsv_to_rgb(
        turn * 0.618034 % 1, 0.85 - 0.3 * (turn % 2), 0.95 - 0.25 * (turn // 2 % 2)
    )
    return f"#{round(255 * red):02X}{round(255 * green):02X}{round(255 * blue):02X}"
