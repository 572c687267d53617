"""The pages of a survey: what they ask, and that they tell nothing of whose a picture is."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image, ImageChops

import surveying
from scoft.errors import DataError
from scoft.survey.build import LANGUAGES, TEMPLATES
from scoft.survey.schema import read_key


def data_of(folder: Path) -> dict:
    """What the page's script reads."""
    text = (folder / "site/index.html").read_text()
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_nothing_of_the_site_tells_a_method(built, generated):
    """Not words, sizes, times, nor what a picture's file holds beside its pixels; the key tells all of them."""
    site, key = built / "site", read_key(built)
    files = [path for path in site.rglob("*") if path.is_file()]
    pictures = [path for path in files if path.suffix == ".png"]
    assert sorted(path.stem for path in pictures) == list(key.pictures) and len(pictures) == 12
    for path in [*files, built / "pages.json"]:
        content = path.read_bytes()
        assert not [word for word in (b"quokka", b"tapir", b"zebra", b"key.json") if word in content.lower()], path
    assert len({path.stat().st_size for path in pictures}) == 1
    assert {path.stat().st_mtime for path in site.rglob("*")} == {site.stat().st_mtime}
    for path in pictures:
        with Image.open(path) as image, Image.open(generated / key.pictures[path.stem].file) as drawn:
            assert ImageChops.difference(image, drawn).getbbox() is None
            assert drawn.info["method"] and image.info == {} and image.mode == "RGB"
            assert set(re.findall(rb"IHDR|IDAT|IEND|paDd|tEXt|eXIf|tIME", path.read_bytes())) <= {
                b"IHDR",
                b"IDAT",
                b"paDd",
                b"IEND",
            }
    assert [sorted(page["pictures"]) for page in data_of(built)["pages"]] == [
        page["pictures"] for page in data_of(built)["pages"]
    ]


def test_a_page_has_a_picture_of_each_method_of_one_prompt_and_noise(built):
    key, data = read_key(built), data_of(built)
    assert key.culture == "korea" and data["survey"] == key.survey
    assert len({page["prompt"] for page in data["pages"]}) == 3
    for number, page in enumerate(data["pages"]):
        shown = [key.pictures[name] for name in page["pictures"]]
        assert {each.method for each in shown} == set(surveying.SHOWN)
        assert {(each.page, each.prompt) for each in shown} == {(number, page["prompt"])}
        assert len({each.seed for each in shown}) == 1


def test_two_surveys_of_the_same_pictures_share_no_name(generated, built, tmp_path):
    other = surveying.build(generated, tmp_path / "other", "--num_pages", 3)
    assert not read_key(other).pictures.keys() & read_key(built).pictures.keys()
    assert {each.method for each in read_key(other).pictures.values()} == {"base", "quokka", "tapir", "zebra"}


def test_pictures_of_several_sizes_become_one(tmp_path):
    surveying.draw(tmp_path / "all", prompts=1, methods=["small"], side=16)
    surveying.draw(tmp_path / "all", prompts=1, methods=["large"], side=32)
    survey = surveying.build(tmp_path / "all", tmp_path / "survey", "--num_pages", 1)
    images = {shown.method: Image.open(survey / f"site/pictures/{name}.png") for name, shown in key_of(survey)}
    assert images["small"].size == images["large"].size == (32, 32)
    assert images["small"].getpixel((0, 0)) == (255, 255, 255) and images["small"].getpixel((8, 8)) != (255, 255, 255)


def key_of(survey: Path):
    return read_key(survey).pictures.items()


def test_other_prompts_come_before_the_second_picture_of_one(tmp_path):
    for number in range(3):
        surveying.draw(tmp_path / "all", prompts=2, methods=["a", "b"], number=number)
    survey = surveying.build(tmp_path / "all", tmp_path / "survey", "--num_pages", 4)
    prompts = [page["prompt"] for page in data_of(survey)["pages"]]
    assert len(set(prompts[:2])) == 2 and sorted(prompts[:2]) == sorted(prompts[2:])
    with pytest.raises(DataError, match="num_pages is at most 6: .*; got 7"):
        surveying.build(tmp_path / "all", tmp_path / "more", "--num_pages", 7)


def test_what_a_method_lacks_or_shows_blank_is_left_out(tmp_path, caplog):
    surveying.draw(tmp_path / "all", prompts=3, methods=["a"])
    surveying.draw(tmp_path / "all", prompts=2, methods=["b"])
    surveying.draw(tmp_path / "all", prompts=1, methods=["b"], blank=True)
    survey = surveying.build(tmp_path / "all", tmp_path / "survey", "--num_pages", 1)
    assert {shown.prompt for _, shown in key_of(survey)} == {"a house (1), in Korea"}
    assert "2 prompts and noises left out" in caplog.text


def test_words_of_a_prompt_stay_words(tmp_path):
    """Script, the end of a script, and what a template would act on."""
    prompt = "</script><script>alert(1)</script> <!-- ${title} & 'x'"
    surveying.draw(tmp_path / "all", prompts=1, methods=["a", "b"], prompt=prompt)
    survey = surveying.build(tmp_path / "all", tmp_path / "survey", "--num_pages", 1)
    assert data_of(survey)["pages"][0]["prompt"] == prompt
    assert (survey / "site/index.html").read_text().count("<script") == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--methods", "quokka"], "methods are 2 to 6 of those that .* has pictures of, base; quokka; .*; got quokka"),
        (["--methods", "quokka", "gone"], "methods are .*; got quokka; gone"),
        (["--sets", "general"], "methods are 2 to 6"),
        (["--num_pages", "4"], "num_pages is at most 3"),
        (["--languages", "fr"], "languages fr is none of ar, en, es, ko; write .*en.json in it"),
        (["--languages", "gone.json"], "gone.json cannot be read"),
        (["--consent", "gone.txt"], "gone.txt cannot be read"),
        (["--answers_url", "javascript:alert(1)"], "answers_url is an address of http or https"),
        (["--answers_url", "https://["], "answers_url is an address of http or https"),
        (["--answers_url", "https://a; script-src *"], "answers_url is an address of http or https"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is_written(generated, tmp_path, flags, words):
    with pytest.raises(DataError, match=words):
        surveying.build(generated, tmp_path / "survey", "--num_pages", 3, *flags)
    assert not (tmp_path / "survey").exists()


def test_a_survey_is_not_built_over_another(built, generated):
    with pytest.raises(DataError, match="is not empty, and answers belong to the survey they were given in"):
        surveying.build(generated, built)


def test_pictures_of_two_cultures_are_refused(tmp_path):
    for number, culture in enumerate(("korea", "china")):
        surveying.draw(tmp_path / "all", prompts=1, methods=["a", "b"], culture=culture, number=number)
    with pytest.raises(DataError, match="several cultures, china; korea"):
        surveying.build(tmp_path / "all", tmp_path / "survey")


# Languages -----------------------------------------------------------------------------------------------------------


def leaves(value: object, path: str = "") -> dict[str, str]:
    """Each text of nested tables and lists by where it stands."""
    if isinstance(value, str):
        return {path: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return {place: text for name, each in pairs for place, text in leaves(each, f"{path}/{name}").items()}


def strings_of(language: str) -> dict:
    return json.loads((TEMPLATES / f"strings/{language}.json").read_text())


def test_four_languages_ship_and_arabic_runs_from_right_to_left():
    assert LANGUAGES == ("ar", "en", "es", "ko")
    assert {language: strings_of(language)["dir"] for language in LANGUAGES} == dict.fromkeys(LANGUAGES, "ltr") | {
        "ar": "rtl"
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_says_all_that_english_does(language):
    """The same texts with the same places for values, none left in English; a letter for each picture."""
    english, strings = strings_of("en"), strings_of(language)
    for part in ("texts", "items", "check"):
        theirs, ours = leaves(english[part]), leaves(strings[part])
        assert theirs.keys() == ours.keys()
        for place, text in theirs.items():
            assert sorted(re.findall(r"\{\w+\}", ours[place])) == sorted(re.findall(r"\{\w+\}", text)), place
            assert language == "en" or "letters" in place or ours[place] != text, place
    assert len(strings["texts"]["letters"]) == len(set(strings["texts"]["letters"])) == 6


def test_a_language_of_ones_own_is_a_file(generated, tmp_path):
    strings = strings_of("en") | {"language": "ig", "name": "Igbo", "cultures": {"korea": "Koria"}}
    (tmp_path / "igbo.json").write_text(json.dumps(strings))
    survey = surveying.build(generated, tmp_path / "survey", "--num_pages", 1, "--languages", tmp_path / "igbo.json")
    shown = data_of(survey)["strings"][0]
    assert (shown["language"], shown["culture"]) == ("ig", "Koria")
    assert '<html lang="ig" dir="ltr">' in (survey / "site/index.html").read_text()
    strings["texts"]["letters"] = "AB"
    del strings["texts"]["skip"]
    (tmp_path / "igbo.json").write_text(json.dumps(strings))
    with pytest.raises(DataError, match="igbo.json lacks skip; letters: 6 of them"):
        surveying.build(generated, tmp_path / "other", "--languages", tmp_path / "igbo.json")
    (tmp_path / "igbo.json").write_text(json.dumps(strings | {"dir": "up"}))
    with pytest.raises(DataError, match="dir is ltr or rtl, got 'up'"):
        surveying.build(generated, tmp_path / "other", "--languages", tmp_path / "igbo.json")


def test_consent_in_ones_own_words(generated, tmp_path):
    (tmp_path / "consent.txt").write_text("We ask\nfor <b>you</b>.\n\nYou may stop.\n")
    flags = ["--num_pages", 1, "--consent", tmp_path / "consent.txt"]
    survey = surveying.build(generated, tmp_path / "survey", *flags)
    assert data_of(survey)["consent"] == ["We ask for <b>you</b>.", "You may stop."]
    (tmp_path / "consent.txt").write_text(" \n")
    with pytest.raises(DataError, match="is blank; write into it"):
        surveying.build(generated, tmp_path / "other", *flags)


def test_the_policy_lets_only_own_files_and_the_server_of_answers_through(generated, built, tmp_path):
    flags = ["--num_pages", 1, "--answers_url", "https://answers.example.org:8443/korea/answers"]
    elsewhere = surveying.build(generated, tmp_path / "survey", *flags)
    policies = [re.search(r'Policy" content="([^"]*)"', (each / "site/index.html").read_text())[1]
                for each in (built, elsewhere)]  # fmt: skip
    assert all("default-src &#x27;none&#x27;" in policy and "unsafe" not in policy for policy in policies)
    assert re.search("connect-src &#x27;self&#x27;;", policies[0])
    assert re.search("connect-src &#x27;self&#x27; https://answers.example.org:8443;", policies[1])
    for name in ("survey.js", "style.css", "index.html"):
        assert "://" not in (built / "site" / name).read_text().replace("http://www.w3.org", "")
