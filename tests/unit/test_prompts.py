"""The shipped prompt lists, and prompts from files with every way to be wrong."""

import pytest

from sdpo_cli.api import LoadContext, Prompt, UsageError
from sdpo_cli.builtin.prompts import sdpo_prompt_sources
from sdpo_cli.builtin.prompts.file import read_prompts

SPECS = {spec.name: spec for spec in sdpo_prompt_sources()}


def texts(name):
    return [prompt.text for prompt in SPECS[name].load(SPECS[name].options(), LoadContext())]


def test_simple_animals():
    assert ", ".join(texts("simple-animals")) == (
        "cat, dog, horse, monkey, rabbit, zebra, spider, bird, sheep, deer, cow, goat, lion, tiger, bear, "
        "raccoon, fox, wolf, lizard, beetle, ant, butterfly, fish, shark, whale, dolphin, squirrel, mouse, rat, "
        "snake, turtle, frog, chicken, duck, goose, bee, pig, turkey, fly, llama, camel, bat, gorilla, hedgehog, "
        "kangaroo"
    )


def test_complex_animals():
    assert texts("complex-animals") == [
        "A green colored rabbit",
        "Four wolves in the park",
        "A cat and a dog",
        "A dog on the moon",
    ]


def test_held_out_prompts_are_in_no_training_list():
    held_out = texts("emoji-held-out")
    trained = {text.lower() for text in texts("simple-animals") + texts("complex-animals")}
    assert len(held_out) == len(set(held_out)) == 32
    assert not trained & set(held_out)
    assert {"elephant", "ladybug"} <= set(held_out)


def test_held_out_scenes_are_in_no_training_list():
    scenes, held_out = texts("scenes"), texts("scenes-held-out")
    assert (len(set(scenes)), len(set(held_out))) == (len(scenes), len(held_out)) == (96, 32)
    assert not set(scenes) & set(held_out)


def write(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("p.txt", "a dog\n\n  # a cat \r\nune grue à l'eau", ["a dog", "# a cat", "une grue à l'eau"]),
        ("p.TXT", b"\xef\xbb\xbfa dog", ["a dog"]),
        ("p.txt", "a dog\u2028and\u2028cat\n", ["a dog\u2028and\u2028cat"]),
        ("p.jsonl", '{"prompt": "a dog"}\n\n{"text": "a cat"}\n', ["a dog", "a cat"]),
        ("p.csv", 'prompt\n"a dog, a cat"\n\n"say ""hi"""\n', ["a dog, a cat", 'say "hi"']),
        ("p.csv", "id,text\r\n1,a dog\r\n", ["a dog"]),
    ],
)
def test_prompts_of_a_file(tmp_path, name, data, expected):
    assert [prompt.text for prompt in read_prompts(write(tmp_path, name, data))] == expected


def test_what_a_row_says_besides_is_metadata(tmp_path):
    rows = write(tmp_path, "p.jsonl", '{"text": "kept", "prompt": "a dog", "n": 2, "tags": ["x"]}')
    assert read_prompts(rows) == [Prompt("a dog", {"text": "kept", "n": 2, "tags": ["x"]})]
    table = write(tmp_path, "p.csv", "file,prompt\na.png,a dog\n")
    assert read_prompts(table) == [Prompt("a dog", {"file": "a.png"})]


def test_a_relative_path_is_meant_from_the_recipes_folder(tmp_path):
    write(tmp_path, "mine.txt", "a dog")
    spec = SPECS["file"]
    assert spec.load(spec.options(path="mine.txt"), LoadContext(folder=tmp_path)) == [Prompt("a dog")]


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("p.txt", "", ": has no prompts; write one prompt a line"),
        ("p.txt", " \n\n", ": has no prompts; write one prompt a line"),
        ("p.csv", "prompt\n", ": has no prompts; write one prompt a line"),
        ("p.csv", "", ": has no prompts; write one prompt a line"),
        ("p.md", "a dog", ": a prompts file ends in .txt, .jsonl, .csv; rename or convert the file"),
        ("p.txt", b"a dog\n\xff\xfe\n", ":2: not UTF-8; save the file as UTF-8"),
        ("p.txt", "a dog\na\tcat\n", ":2: control character U+0009 in the prompt; remove it"),
        ("p.txt", "a\x00dog", ":1: control character U+0000 in the prompt; remove it"),
        ("p.jsonl", '{"prompt": "\\ud800"}', ":1: an escape of half a character; write the character itself"),
        ("p.jsonl", '{"prompt": "a", "b": "\\ud800"}', ":1: an escape of half a character; write the character itself"),
        ("p.jsonl", '\n["a dog"]', ':2: not a JSON object; write lines like {"prompt": "a dog"}'),
        (
            "p.jsonl",
            '{"caption": "a dog", "n": 1}',
            ":1: none of caption, n is `prompt` or `text`; name the prompt `prompt`",
        ),
        ("p.jsonl", "{}", ":1: no `prompt` and no `text`; name the prompt `prompt`"),
        ("p.jsonl", '{"prompt": 3}', ":1: `prompt` is no text; put the prompt in quotes"),
        ("p.jsonl", '{"prompt": "dog"}\n{"prompt": " "}', ":2: the prompt is empty; write one or remove the line"),
        ("p.csv", "file,caption\na,b\n", ":1: none of file, caption is `prompt` or `text`; name the prompt `prompt`"),
        (
            "p.csv",
            "prompt\na dog\na dog, a cat\n",
            ":3: 2 fields under a header of 1; put texts with commas in double quotes",
        ),
        ("p.csv", "file,prompt\na.png,\n", ":2: the prompt is empty; write one or remove the line"),
        ("p.csv", 'prompt\n"a "dog"\n', ":2: not CSV (',' expected after '\"'); check the quotes"),
        ("p.csv", 'prompt\n"a\ndog"\n', ":3: control character U+000A in the prompt; remove it"),
    ],
)
def test_faults_name_file_and_line(tmp_path, name, data, line):
    path = write(tmp_path, name, data)
    with pytest.raises(UsageError) as caught:
        read_prompts(path)
    assert str(caught.value) == f"{path}{line}"


def test_bad_json_names_the_line(tmp_path):
    path = write(tmp_path, "p.jsonl", '{"prompt": "a dog"}\n{"prompt": \n')
    with pytest.raises(UsageError, match=r"p\.jsonl:2: not JSON \(.*\); write one JSON object a line$"):
        read_prompts(path)


def test_json_too_deep_to_read_is_a_fault(tmp_path):
    path = write(tmp_path, "p.jsonl", "[" * 200_000)
    with pytest.raises(UsageError, match=r"p\.jsonl:1: not JSON"):
        read_prompts(path)


@pytest.mark.parametrize(("name", "fault"), [
    ("none.txt", "no such file; correct the path"),
    ("folder.txt", "is a folder; name a .txt, .jsonl or .csv file"),
])  # fmt: skip
def test_no_file_there(tmp_path, name, fault):
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UsageError) as caught:
        read_prompts(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name}: {fault}"
