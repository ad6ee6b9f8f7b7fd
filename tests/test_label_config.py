"""Labelling configs: what is read, what is refused and how, what counts as a change."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, replace
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_studio_sdk.label_interface import LabelInterface

from ml_backend.studio.label_config import (
    LabelConfig,
    LabelConfigError,
    ShapeControl,
    bitmask_config,
    brush_config,
    data_fields,
    explain_change,
    parse_label_config,
    with_drags,
)

BITMASK = """
<View>
  <Header value="Paint the implant"/>
  <Image name="slice" value="$image" zoom="true" smoothing="false"/>
  <BitmaskLabels name="tissue" toName="slice">
    <Label value="bone" background="#fff"/>
    <Label value="implant"/>
    <Label value="layer"/>
  </BitmaskLabels>
</View>
"""


def config(
    labels: str = '<Label value="bone"/><Label value="implant"/>',
    control: str = "BrushLabels",
    extra: str = "",
    image: str = '<Image name="image" value="$image"/>',
    to_name: str = "image",
) -> str:
    masks = f'<{control} name="label" toName="{to_name}">{labels}</{control}>'
    return f"<View>{image}{masks}{extra}</View>"


def labels(*names: str) -> str:
    return "".join(f'<Label value="{name}"/>' for name in names)


def test_a_bitmask_config_without_a_background_label():
    read = parse_label_config(BITMASK)
    assert (read.image_name, read.value_field) == ("slice", "image")
    assert (read.kind, read.from_name, read.to_name) == ("bitmask", "tissue", "slice")
    assert read.classes == ("background", "bone", "implant", "layer")
    assert not read.has_background_label
    assert read.labels == ("bone", "implant", "layer")
    assert read.class_index("bone") == 1
    assert read.class_index("background") is None  # nobody can paint it
    assert read.class_index("Bone") is None
    assert read.shapes == ()
    with pytest.raises(FrozenInstanceError):
        read.kind = "brush"  # type: ignore[misc]


@pytest.mark.parametrize("name", ["background", "Background", "BACKGROUND", "bg", "BG"])
def test_a_background_label_is_class_0_wherever_it_stands(name):
    read = parse_label_config(config(labels("bone", name, "implant")))
    assert read.classes == (name, "bone", "implant")
    assert read.has_background_label
    assert read.labels == read.classes
    assert read.class_index(name) == 0


def test_unlabelled_pixels_follow_the_background_label_unless_a_setting_says_otherwise():
    implicit = parse_label_config(config(labels("bone")))
    explicit = parse_label_config(config(labels("bone", "bg")))
    assert implicit.unlabelled() == implicit.unlabelled("auto") == "background"
    assert explicit.unlabelled() == explicit.unlabelled("auto") == "ignore"
    for read in (implicit, explicit):
        assert read.unlabelled("ignore") == "ignore"
        assert read.unlabelled("background") == "background"
        with pytest.raises(
            LabelConfigError, match="expected auto, ignore or background, found 'x'"
        ):
            read.unlabelled("x")  # type: ignore[arg-type]


def test_outline_controls_of_the_same_image_are_listed():
    extra = (
        '<PolygonLabels name="p" toName="image"><Label value="bone"/></PolygonLabels>'
        '<RectangleLabels name="r" toName="image"><Label value="implant"/></RectangleLabels>'
        '<EllipseLabels name="e" toName="image"><Label value="bone"/></EllipseLabels>'
        '<Text name="t" value="$t"/>'
    )
    read = parse_label_config(config(extra=extra))
    assert read.shapes == (
        ShapeControl("polygon", "p", ("bone",)),
        ShapeControl("rectangle", "r", ("implant",)),
        ShapeControl("ellipse", "e", ("bone",)),
    )


def with_tools(*tools: str) -> LabelConfig:
    return parse_label_config(
        '<View><Image name="image" value="$image"/>'
        + "".join(tools)
        + '<BrushLabels name="tag" toName="image" smart="true"><Label value="bone"/></BrushLabels>'
        + "</View>"
    )


def test_controls_and_which_of_them_draw_prompts():
    read = with_tools(
        '<RectangleLabels name="r" toName="image" smart="true"><Label value="bone"/>'
        "</RectangleLabels>",
        '<Rectangle name="fix" toName="image" smart="true" SmartOnly="TRUE"/>',
        '<KeyPointLabels name="k" toName="image" smartOnly="true"><Label value="bone"/>'
        "</KeyPointLabels>",
        '<PolygonLabels name="p" toName="image" smart="false"><Label value="bone"/>'
        "</PolygonLabels>",
        '<Choices name="good" toName="image"><Choice value="yes"/></Choices>',
        '<Header value="no control"/>',
    )
    assert read.controls == ("r", "fix", "k", "p", "good", "tag")
    assert (read.prompts, read.smart) == (("fix", "k"), ("r",))


def test_how_regions_are_read_changes_with_the_controls_and_no_model_does():
    tools = [
        "",
        *(
            f'<Rectangle name="fix" toName="image" {attributes}/>'
            for attributes in ("", 'smart="true"', 'smartOnly="true"')
        ),
    ]
    read = [with_tools(tool) for tool in tools]
    assert len({one.reading for one in read}) == 4
    assert len({one.fingerprint for one in read}) == 1
    assert with_tools().reading == read[0].reading


def test_how_regions_are_read_changes_with_the_aliases_and_no_model_does():
    texts = ('value="bone"', 'value="bone" alias="B"', 'value="bone" alias="C"')
    read = [parse_label_config(config(f'<Label {text}/><Label value="x"/>')) for text in texts]
    assert len({one.reading for one in read}) == 3
    assert len({one.fingerprint for one in read}) == 1


def test_tag_and_attribute_names_in_any_case():
    read = parse_label_config(
        '<view><image NAME="i" VALUE="$image"/><brushlabels name="b" toname="i">'
        '<label value="x"/></brushlabels></view>'
    )
    assert (read.kind, read.from_name, read.to_name) == ("brush", "b", "i")


def test_labels_nested_in_views():
    read = parse_label_config(config(f"<View>{labels('a')}<View>{labels('b')}</View></View>"))
    assert read.labels == ("a", "b")


def test_an_alias_is_what_results_hold():
    read = parse_label_config(config('<Label value="bone" alias="B"/><Label value="implant"/>'))
    assert read.classes == ("background", "bone", "implant")
    assert read.class_index("B") == read.class_index("bone") == 1
    assert [read.result_label(i) for i in (1, 2)] == ["B", "implant"]


@pytest.mark.parametrize(
    ("value", "field"),
    [("$image", "image"), ("$meta.url", "meta.url"), ("$images[0]", "images[0]")],
)
def test_the_data_field_of_the_image(value, field):
    read = parse_label_config(config(image=f'<Image name="image" value="{value}"/>'))
    assert read.value_field == field


def showing(field: str) -> LabelConfig:
    return parse_label_config(config(image=f'<Image name="image" value="${field}"/>'))


@pytest.mark.parametrize(
    ("field", "data", "image"),
    [
        ("image", {"image": "a"}, "a"),
        ("image", {"picture": "a"}, None),
        ("meta.image", {"meta": {"image": "a"}}, "a"),
        ("meta.image", {"meta.image": "b", "meta": {"image": "a"}}, "b"),  # as lodash's get
        ("meta.image", {"meta": "a"}, None),
        ("meta.image", {"meta": None}, None),
        ("images[0]", {"images": ["a", "b"]}, "a"),
        ("images[1]", {"images": ["a", "b"]}, "b"),
        ("images[2]", {"images": ["a", "b"]}, None),
        ("images.1", {"images": ["a", "b"]}, "b"),
        ("images[0]", {"images": {"0": "a"}}, "a"),
        ("images[0]", {"images": "abc"}, None),
        ("a.b[1].c", {"a": {"b": [0, {"c": "a"}]}}, "a"),
        ("a.b[1].c", {"a": {"b": [0, "c"]}}, None),
    ],
)
def test_where_the_image_stands(field, data, image):
    assert showing(field).image_of(data) == image


@pytest.mark.parametrize("field", ["image", "meta.image", "images[0]", "images[2]", "a.b[1].c"])
def test_data_that_shows_an_image(field):
    read = showing(field)
    assert read.image_of(read.data_of("http://h/1.png")) == "http://h/1.png"
    assert read.plain_field == (field == "image")


@pytest.mark.parametrize(
    ("field", "data"),
    [
        ("image", {"image": "i", "meta": {"who": ""}, "pages": []}),
        ("meta.image", {"meta": {"image": "i", "who": ""}, "pages": []}),
        ("pages[0]", {"pages": ["i"], "meta": {"who": ""}}),
        ("meta", {"meta": "i", "pages": []}),
    ],
)
def test_data_has_what_label_studio_wants_beside_the_image(field, data):
    shown = (
        '<Header value="$no_name"/><Text name="a" value="$scan"/><Text name="b" value="$meta.who"/>'
        '<HyperText name="c" value="of $place in $land"/><Text name="d" value="no field"/>'
        '<Paragraphs name="e" value="$pages[2]"/><Text name="f" value="$"/>'
    )
    image = f'<Image name="image" value="${field}"/>'
    read = parse_label_config(config(image=image, extra=shown))
    assert read.data_of("i") == {**data, "scan": "", "place": ""}


@pytest.mark.parametrize("field", ["a[", "a[b]", "a..b", "[0]", ".a", "a.", "a[0]b", "a[99999]"])
def test_paths_that_lead_nowhere_are_refused(field):
    with pytest.raises(
        LabelConfigError, match=r"expected one data field such as .*meta\.image or "
    ):
        showing(field)


def test_the_fields_of_data_as_a_config_names_them():
    data = {
        "image": "a",
        "meta": {"url": "b", "of": [{"x": 1}]},
        "list": ["c"],
        "none": [],
        "o": {},
    }
    found = list(data_fields(data))
    assert found == ["image", "meta.url", "meta.of[0].x", "list[0]", "none", "o"]


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("", "no labelling config yet"),
        ("  \n", "no labelling config yet"),
        ("<View>", "not well-formed XML: no element found: line 1"),
        ("<View>&nbsp;</View>", "not well-formed XML: undefined entity"),
        ("<View>\ud800</View>", "not well-formed XML"),
        ("<View></View>", 'no Image tag: add <Image name="image"'),
        (config(image=""), "no Image tag"),
        (
            config(extra='<Image name="second" value="$b"/>'),
            r'shows 2 images \("image", "second"\).*keep one Image tag',
        ),
        (config(image='<Image name="image" valueList="$all"/>'), "list of images"),
        (config(image='<Image value="$image"/>'), 'the Image tag has no name: add name="…"'),
        (config(image='<Image name="image"/>'), "the Image tag has no value"),
        (
            config(image='<Image name="image" value="https://a/$x"/>'),
            'value="https://a/\\$x", expected one data field',
        ),
        ('<View><Image name="i" value="$i"/></View>', "no control that paints labelled masks: add"),
        (config(control="PolygonLabels"), r"\(it has PolygonLabels, which is not enough\): add"),
        (config(control="Brush"), r"\(it has Brush, which is not enough\)"),
        (
            config(
                extra='<BitmaskLabels name="m" toName="image"><Label value="a"/></BitmaskLabels>'
            ),
            r'2 controls that paint masks \(BrushLabels "label", BitmaskLabels "m"\): keep one',
        ),
        (
            config(to_name="other"),
            'points to "other", the Image tag is called "image": set toName="image"',
        ),
        (config(to_name=""), "the BrushLabels tag has no toName"),
        (config(""), "BrushLabels has no labels"),
        (config(labels("a", "a", "b")), r"labels of the same name \(a\)"),
        (config('<Label alias="a"/>'), "the Label tag has no value"),
        (config(labels("bg", "Background")), r"2 labels for the background \(bg, Background\)"),
        (config(labels("BG")), r"has no label but the background \(BG\): add one Label"),
        (config(labels(*map(str, range(255)))), "256 classes with the background, at most 255"),
        (
            '<View><Image name="i" value="$i"/>'
            '<BrushLabels name="b" toName="i" value="$l"/></View>',
            r"takes its labels from task data \(\$l\)",
        ),
    ],
)
def test_configs_that_are_refused(xml, message):
    with pytest.raises(LabelConfigError, match=message):
        parse_label_config(xml)


def test_a_config_of_very_many_labels_is_refused_in_time():
    many = config(labels(*map(str, range(100_000))))  # to compare each with all takes minutes
    with pytest.raises(LabelConfigError, match=r"makes 100001 classes .* at most 255 fit"):
        parse_label_config(many)


def test_255_classes_are_accepted():
    assert len(parse_label_config(config(labels(*map(str, range(254))))).classes) == 255


@pytest.mark.parametrize(
    "declaration",
    [
        '<!DOCTYPE v [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;"><!ENTITY c "&b;&b;&b;">]>',
        '<!DOCTYPE v [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE v SYSTEM "http://example.org/v.dtd">',
    ],
)
def test_document_types_and_so_entities_are_refused(declaration):
    with pytest.raises(LabelConfigError, match="document type"):
        parse_label_config(declaration + config(labels("&c;") if "ENTITY c" in declaration else ""))


def test_a_document_type_in_a_comment_is_harmless():
    assert parse_label_config("<!-- <!DOCTYPE v> -->" + config()).labels == ("bone", "implant")


# Changes


OLD = parse_label_config(config(labels("bone", "implant", "layer")))


@pytest.mark.parametrize(
    ("new", "sentence"),
    [
        (labels("bone", "implant", "layer", "marrow"), "class added: marrow"),
        (labels("bone", "x", "implant", "layer", "y"), "classes added: x, y"),
        (labels("bone", "layer"), "class removed: implant"),
        (labels("bone", "screw", "layer"), 'class "implant" was renamed to "screw"'),
        (labels("implant", "bone", "layer"), "in another order: implant, bone, layer instead of"),
        (labels("layer", "x", "bone"), 'class "implant" was renamed to "x"; the classes are in'),
        (labels("bone", "layer", "x", "y"), "classes added: x, y; class removed: implant"),
        (labels("bone", "implant", "layer", "Background"), "class added: Background"),
    ],
)
def test_changes_of_classes_are_explained(new, sentence):
    changed = parse_label_config(config(new))
    assert sentence in str(explain_change(OLD, changed))
    assert changed.fingerprint != OLD.fingerprint


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kind": "bitmask"}, "masks are painted as bitmask instead of brush"),
        ({"from_name": "l"}, 'the control is called "l" instead of "label"'),
        ({"to_name": "i"}, 'the image tag is called "i" instead of "image"'),
        ({"value_field": "png"}, 'the image\'s data field is called "png" instead of "image"'),
    ],
)
def test_changes_of_the_control_are_explained(change, sentence):
    changed = replace(OLD, **change)
    assert explain_change(OLD, changed) == f"The labelling config changed: {sentence}."
    assert changed.fingerprint != OLD.fingerprint


@pytest.mark.parametrize(
    "harmless",
    [
        config(
            '<Label value="bone" background="red" hint="hard" hotkey="b"/>'
            '<Label value="implant" alias="I"/><Label value="layer"/>',
            extra='<Header value="Title"/><Choices name="c" toName="image"><Choice value="x"/>'
            "</Choices>",
        ),
        config(
            labels("bone", "implant", "layer"),
            extra='<PolygonLabels name="p" toName="image"><Label value="bone"/></PolygonLabels>',
        ),
        config(
            labels("bone", "implant", "layer"),
            image='<Image name="image" value="$image" zoom="1"/>',
        ),
    ],
)
def test_colours_hints_titles_and_tools_are_harmless(harmless):
    new = parse_label_config(harmless)
    assert explain_change(OLD, new) is None
    assert new.fingerprint == OLD.fingerprint


def test_moving_the_background_label_changes_no_class():
    first = parse_label_config(config(labels("bg", "a", "b")))
    last = parse_label_config(config(labels("a", "b", "bg")))
    assert explain_change(first, last) is None


names = st.lists(
    st.sampled_from(["a", "b", "c", "d", "background"]), min_size=1, max_size=4, unique=True
).filter(lambda names: names != ["background"])
kinds = st.sampled_from(["BrushLabels", "BitmaskLabels"])


@given(names, names, kinds, kinds)
def test_the_fingerprint_changes_exactly_when_there_is_something_to_say(old, new, before, after):
    a = parse_label_config(config(labels(*old), control=before))
    b = parse_label_config(config(labels(*new), control=after))
    assert (explain_change(a, b) is None) == (a.fingerprint == b.fingerprint)
    same = (a.classes, a.has_background_label, a.kind) == (
        b.classes,
        b.has_background_label,
        b.kind,
    )
    assert (explain_change(a, b) is None) == same
    assert re.fullmatch("[0-9a-f]{16}", a.fingerprint)


def test_the_fingerprint_does_not_change_between_releases():
    # It is stored with every checkpoint: a new value here retires all of them.
    assert parse_label_config(BITMASK).fingerprint == "2a853dcc29c8bc74"


# New configs


@pytest.mark.parametrize(
    ("make", "kind", "tag"),
    [(bitmask_config, "bitmask", "BitmaskLabels"), (brush_config, "brush", "BrushLabels")],
)
def test_new_configs(make, kind, tag):
    xml = make(["bone", 'a "screw" & <nut>', "layer"])
    read = parse_label_config(xml)
    assert read.kind == kind
    assert read.classes == ("background", "bone", 'a "screw" & <nut>', "layer")
    assert read.value_field == "image"
    root = ElementTree.fromstring(xml)
    assert root.find("Image").attrib["smoothing"] == "false"
    assert root.find("Image").attrib["zoom"] == "true"
    assert [label.attrib["value"] for label in root.find(tag)] == list(read.labels)


def test_new_configs_with_a_background_label():
    read = parse_label_config(bitmask_config(["background", "bone"]))
    assert read.classes == ("background", "bone")
    assert read.has_background_label


def test_colours_are_distinct():
    root = ElementTree.fromstring(bitmask_config([f"class {i}" for i in range(60)]))
    colours = [label.attrib["background"] for label in root.iter("Label")]
    assert len(set(colours)) == 60
    assert all(re.fullmatch("#[0-9A-F]{6}", colour) for colour in colours)


@pytest.mark.parametrize("why", [False, True])
@pytest.mark.parametrize("make", [bitmask_config, brush_config])
def test_the_sdk_accepts_new_configs(make, why):
    interface = LabelInterface(make(["bone", "implant"], why=why))
    interface.validate()
    control = interface.get_control("label")
    assert list(control.labels) == ["bone", "implant"]
    assert control.to_name == ["image"]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "has no labels"),
        (["a", " "], "a class has an empty name"),
        (["a", "a"], r"same name \(a\)"),
        (["bg", "background"], "2 labels for the background"),
        (["background"], "no label but the background"),
    ],
)
def test_new_configs_that_are_refused(classes, message):
    with pytest.raises(LabelConfigError, match=message):
        bitmask_config(classes)


# -- drags


COMMENTED = """<View>
  <!-- of the lab -->
  <Image name="slice" value="$image"/>
    <BrushLabels name="tissue" toName="slice" maxUsages="3">
      <Label value="bone"/>
    </BrushLabels>
  <Choices name="ok" toName="slice"><Choice value="yes"/></Choices>
</View>
"""


@pytest.mark.parametrize("make", [bitmask_config, brush_config])
def test_a_new_config_can_be_dragged_on(make):
    xml = make(["bone"])
    assert parse_label_config(xml).prompts == ("fix",)
    assert 'smart="false"' in xml
    assert with_drags(xml) == xml


def test_what_drags_need_is_put_into_a_config_and_nothing_else_is_changed():
    found = with_drags(COMMENTED)
    assert found.splitlines() == [
        *COMMENTED.splitlines()[:3],
        '    <BrushLabels name="tissue" toName="slice" maxUsages="3" smart="false">',
        *COMMENTED.splitlines()[4:6],
        '    <Rectangle name="fix" toName="slice" smart="true" smartOnly="true"/>',
        *COMMENTED.splitlines()[6:],
    ]
    before, after = parse_label_config(COMMENTED), parse_label_config(found)
    assert before.fingerprint == after.fingerprint
    LabelInterface(found).validate()


@pytest.mark.parametrize(
    "xml",
    [
        config(control="BitmaskLabels"),
        config(extra='<Number name="fix" toName="image"/>'),
        config().replace("BrushLabels", "brushlabels"),
        config().replace('toName="image">', 'toName="image" smart="true">'),
        BITMASK,
    ],
)
def test_any_config_can_be_given_what_drags_need(xml):
    read = parse_label_config(with_drags(xml))
    assert len(read.prompts) == 1
    assert read.fingerprint == parse_label_config(xml).fingerprint
    assert with_drags(with_drags(xml)) == with_drags(xml)


def test_a_config_with_a_prompt_of_its_own_stays():
    xml = config(extra='<KeyPoint name="k" toName="image" smartOnly="true"/>')
    assert with_drags(xml) == xml


def test_lines_that_cannot_be_put_in_are_shown():
    hidden = config().replace("<BrushLabels", "<!-- <BrushLabels> --><BrushLabels")
    with pytest.raises(LabelConfigError, match=r'add <Rectangle name="fix" toName="image"'):
        with_drags(hidden)
