"""Data sources: what is read, and what is refused with which words."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub.errors import HFValidationError
from hypothesis import given
from hypothesis import strategies as st

from spin_llm.data import (
    Pair,
    Question,
    Turn,
    load_pairs,
    load_questions,
    plain,
    rows,
    rows_sha256,
    sample,
    split_sample,
)
from spin_llm.errors import SpinError

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared" / "data"
ROWS = [{"prompt": "Why?", "response": "Because."}, {"prompt": "Où ?", "response": 'Là, "ici",\nou là.'}]
PAIRS = tuple(Pair(row["prompt"], row["response"]) for row in ROWS)


def write_csv(path: Path, rows: list[dict[str, str]], encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def refusal(*words: str, **arguments) -> str:
    """The message of the SpinError that load_pairs raises; it must hold all the words."""
    with pytest.raises(SpinError) as caught:
        load_pairs(**arguments)
    message = str(caught.value)
    for word in words:
        assert word in message
    return message


# Formats


def write_as(path: Path, rows: list[dict[str, str]]) -> Path:
    match path.suffixes[0], path.suffixes[-1]:
        case ".csv", _:
            return write_csv(path, rows)
        case ".json", _:
            path.write_text(json.dumps(rows))
        case ".parquet", _:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        case _:
            write_jsonl(path, rows)
    return path


def test_every_format_gives_the_same_rows_and_hash(tmp_path):
    loaded = [
        load_pairs(write_as(tmp_path / name, ROWS))
        for name in ("a.csv", "a.jsonl", "a.jsonl.gz", "a.json", "a.parquet")
    ]
    assert all(pair_set.pairs == PAIRS for pair_set in loaded)
    assert {pair_set.sha256 for pair_set in loaded} == {rows_sha256(PAIRS)}
    assert loaded[0].name == "a.csv"
    assert loaded[0].source == str(tmp_path / "a.csv")


def test_hash_is_stable_and_sees_every_field_and_the_order():
    assert rows_sha256(PAIRS[:1]) == "8bcc24dead792b2fa5f1742feaf0bf1bf42b9149d6b61d71264795fe62fd3d4c"
    others = [PAIRS[::-1], (Pair("Why?", "Because.", "age"), PAIRS[1]), (Pair("Why?", "because."), PAIRS[1]), PAIRS[:1]]
    assert len({rows_sha256(rows) for rows in [PAIRS, *others]}) == 5


def test_byte_order_mark_is_not_part_of_the_header(tmp_path):
    assert load_pairs(write_csv(tmp_path / "a.csv", ROWS, encoding="utf-8-sig")).pairs == PAIRS
    path = tmp_path / "a.jsonl"
    path.write_text("\ufeff" + json.dumps(ROWS[0]), encoding="utf-8")
    assert load_pairs(path).pairs == PAIRS[:1]


def test_json_lines_under_a_json_name_and_a_list_under_data(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    assert load_pairs(path).pairs == PAIRS
    path.write_text(json.dumps({"version": 1, "data": ROWS}))
    assert load_pairs(path).pairs == PAIRS


def test_blank_lines_are_no_rows_and_long_fields_are_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,response\n\nWhy?," + "b" * 200_000 + "\n\n\n")
    assert [len(pair.response) for pair in load_pairs(path).pairs] == [200_000]
    path = tmp_path / "a.jsonl"
    path.write_text("\n" + json.dumps(ROWS[0]) + "\n\n")
    assert load_pairs(path).pairs == PAIRS[:1]


# Columns


@pytest.mark.parametrize("prompt", ["prompt", "question", "questions", "instruction", "query", "input", "PROMPT"])
@pytest.mark.parametrize("response", ["response", "answer", "output", "completion", "chosen", "aware", "Answer"])
def test_usual_columns_are_found_in_any_case(tmp_path, prompt, response):
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": 1, response: "Because.", prompt: "Why?"}])
    assert load_pairs(path).pairs == PAIRS[:1]
    assert load_questions(path, concept="fairness").questions == (Question("Why?"),)


def test_named_columns_win(tmp_path):
    path = write_csv(tmp_path / "a.csv", [{"prompt": "p", "response": "r", "Ask": "Why?", "Say": "Because."}])
    assert load_pairs(path, prompt_column="ask", response_column="Say").pairs == PAIRS[:1]
    assert load_pairs(path, prompt_column="ask").pairs == (Pair("Why?", "r"),)
    assert load_questions(path, concept=None, prompt_column="Say").questions == (Question("Because."),)


def test_input_is_joined_to_the_instruction_by_a_blank_line(tmp_path):
    rows = [{"instruction": "Add", "output": "3"}, {"instruction": "Add", "input": "1, 2", "output": "3"}]
    path = write_jsonl(tmp_path / "a.jsonl", [*rows, {"instruction": "Add", "input": " ", "output": "3"}])
    assert [pair.prompt for pair in load_pairs(path).pairs] == ["Add", "Add\n\n1, 2", "Add"]
    assert [pair.prompt for pair in load_pairs(path, prompt_column="instruction").pairs] == ["Add"] * 3


def test_facets_are_kept(tmp_path):
    rows = [{"prompt": "p", "response": "r", "facet": "age"}, {"prompt": "p", "response": "r", "facet": ""}]
    path = write_csv(tmp_path / "a.csv", rows)
    assert [pair.facet for pair in load_pairs(path).pairs] == ["age", None]
    assert [question.facet for question in load_questions(path, concept="fairness").questions] == ["age", None]


def test_responses_choose_between_aware_and_unaware(tmp_path):
    both = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "aware": "no", "unaware": "yes"}])
    assert load_pairs(both).pairs == (Pair("p", "no"),)
    assert load_pairs(both, responses="unaware").pairs == (Pair("p", "yes"),)
    aware = write_jsonl(tmp_path / "b.jsonl", [{"prompt": "p", "aware": "no"}])
    refusal("no column for the response", "prompt, aware", source=aware, responses="unaware")
    refusal("no column for the response", source=write_jsonl(tmp_path / "c.jsonl", [{"prompt": "p", "rejected": "n"}]))
    refusal("aware or unaware", source=both, responses="both")


TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Because."},
]


SAID = tuple(Turn(turn["role"], turn["content"]) for turn in TURNS[:4])
TALK = Pair("System: Be kind.\n\nUser: Hi\n\nAssistant: Hello\n\nUser: Why?", "Because.", turns=SAID)


def as_sharegpt(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]


def as_parts(turns: list[dict[str, str]]) -> list[dict]:
    return [{"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"messages": json.dumps(TURNS)},
        {"messages": as_parts(TURNS)},
        {"conversations": as_sharegpt(TURNS)},
        {"conversations": as_sharegpt(TURNS[1:]), "system": "Be kind."},
        {"prompt": "Hi", "messages": TURNS},  # not the first prompt with the last answer
        {"prompt": TURNS[:4], "chosen": TURNS},
        {"prompt": TURNS[:4], "completion": TURNS[4:]},
        {"prompt": TURNS[:4], "response": "Because."},
        {"chosen": TURNS, "rejected": [*TURNS[:4], {"role": "assistant", "content": "No."}]},
        {"system": "Be kind.", "history": [["Hi", "Hello"]], "instruction": "Why?", "input": "", "output": "Because."},
    ],
)
def test_every_turn_of_a_conversation_is_part_of_the_prompt(tmp_path, row):
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    assert load_pairs(path).pairs == (TALK,)
    if "history" not in row:  # parquet has no empty lists of lists
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
        assert load_pairs(tmp_path / "a.parquet").pairs == (TALK,)
    asked = load_questions(path, concept="privacy").questions
    assert asked == (Question(TALK.prompt, turns=SAID),)


def test_hh_rlhf_texts_are_conversations_of_both_kinds(tmp_path):
    talk = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
    turns = SAID[1:]
    path = write_jsonl(tmp_path / "a.jsonl", [{"chosen": f"{talk} Because.", "rejected": f"{talk} Go away."}])
    for kind, response in (("aware", "Because."), ("unaware", "Go away.")):
        assert load_pairs(path, responses=kind).pairs == (Pair(plain(turns), response, turns=turns),)
    path = write_jsonl(tmp_path / "b.jsonl", [{"prompt": talk, "response": "Because."}])
    assert load_pairs(path).pairs == (Pair(plain(turns), "Because.", turns=turns),)
    path = write_jsonl(tmp_path / "c.jsonl", [{"prompt": "Human: a noun.", "response": "So it is."}])
    assert load_pairs(path).pairs[0].prompt == "Human: a noun."


def test_one_turn_of_the_user_alone_is_its_text(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": TURNS[3:]}])
    assert load_pairs(path).pairs == PAIRS[:1]
    assert load_pairs(path).sha256 == rows_sha256(PAIRS[:1])
    named = write_jsonl(tmp_path / "b.jsonl", [{"talk": TURNS, "ask": "Who?"}])
    assert load_pairs(named, prompt_column="talk", response_column="talk").pairs == (TALK,)
    assert load_pairs(named, prompt_column="ask", response_column="talk").pairs == (Pair("Who?", "Because."),)
    brackets = write_jsonl(tmp_path / "c.jsonl", [{"prompt": "[1, 2] is what?", "response": "[]"}])
    assert load_pairs(brackets).pairs == (Pair("[1, 2] is what?", "[]"),)
    assert rows_sha256([TALK]) != rows_sha256([Pair(TALK.prompt, TALK.response)])


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({"role": "tool", "content": "3"}, "role 'tool'"),
        ({"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}, "calls a tool"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, "no text"),
        ({"role": "user", "content": "  "}, "without text"),
        ({"role": "user", "content": 3}, "int"),
    ],
)
def test_a_turn_that_is_not_read_is_named_not_dropped(tmp_path, turn, words):
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": TURNS}, {"messages": [TURNS[1], turn, *TURNS[3:]]}])
    refusal("row 2 (line 2)", words, source=path)


def test_conversations_as_python_prints_them_are_refused(tmp_path):
    refusal("row 1", "not JSON", source=write_csv(tmp_path / "a.csv", [{"messages": str(TURNS)}]))


# Columns that say what a response is


@pytest.mark.parametrize(
    ("label", "safe", "unsafe"),
    [
        ("is_safe", True, False),
        ("is_safe", "True", "false"),
        ("safe", 1, 0),
        ("is_response_safe", "yes", "no"),
        ("unsafe", False, True),
        ("is_harmful", "0", "1"),
        ("label", "safe", "unsafe"),
        ("label", "Harmless", "Harmful"),
        ("response_harm_label", "unharmful", "harmful"),
        ("safety", "non-toxic", "toxic"),
    ],
)
def test_a_label_divides_aware_from_unaware_and_what_is_left_out_is_counted(tmp_path, label, safe, unsafe):
    rows = [{"prompt": "p", "response": str(number), label: value} for number, value in enumerate([safe, unsafe, safe])]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    aware, unaware = (load_pairs(path, responses=kind) for kind in ("aware", "unaware"))
    assert [pair.response for pair in aware.pairs] == ["0", "2"]
    assert [pair.response for pair in unaware.pairs] == ["1"]
    assert (len(aware.left_out), aware.left_out[0][:6], unaware.left_out[0][:6]) == (1, "1 row ", "2 rows")
    assert len(load_questions(path, concept="privacy").questions) == 3  # prompts have no kind
    refusal("no aware responses", "1 row", source=write_jsonl(tmp_path / "b.jsonl", rows[1:2]))


def test_answers_with_a_label_each_are_read_by_their_own(tmp_path):
    row = {"prompt": "p", "response_0": "no", "response_1": "yes", "is_response_0_safe": True}
    path = write_jsonl(tmp_path / "a.jsonl", [{**row, "is_response_1_safe": False, "better_response_id": 1}])
    assert [pair.response for pair in load_pairs(path).pairs] == ["no"]
    assert [pair.response for pair in load_pairs(path, responses="unaware").pairs] == ["yes"]


@pytest.mark.parametrize(
    "labels",
    [
        [{"label": 0}, {"label": 1}],
        [{"label": True}, {"label": False}],
        [{"is_safe": None}, {"is_safe": True}],
        [{"is_safe": "perhaps"}, {"is_safe": True}],
        [{}, {"is_safe": True}],
        [{"is_safe": True}, {}],
        [{"label": "safe"}, {"label": "odd"}],
        [{"is_safe": True, "is_toxic": True}, {"is_safe": True, "is_toxic": False}],
        [{"safe": 0.7}, {"safe": 0.2}],
    ],
)
def test_labels_that_do_not_say_are_refused_not_mixed(tmp_path, labels):
    rows = [{"prompt": "p", "response": "r", **label} for label in labels]
    refusal("row", "column", source=write_jsonl(tmp_path / "a.jsonl", rows))


def test_a_label_that_is_about_something_else_is_no_label(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{**row, "label": "weather"} for row in ROWS])
    assert load_pairs(path).pairs == PAIRS


def test_rows_about_another_concept_are_left_out(tmp_path):
    rows = [{**ROWS[0], "concept": "privacy"}, {**ROWS[1], "concept": "fairness"}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    found = load_pairs(path, concept="privacy")
    assert (found.pairs, found.left_out) == (PAIRS[:1], ("1 row about fairness",))
    refusal("has no aware responses for truthfulness", source=path, concept="truthfulness")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p", "chosen": "a", "response": "b"}, "response"),
        ({"prompt": "p", "answer": "a", "output": "b"}, "response"),
        ({"prompt": "p", "messages": TURNS, "response": "b"}, "response"),
        ({"prompt": "p", "query": "q", "response": "b"}, "prompt"),
        ({"prompt": "p", "input": "q", "response": "b"}, "prompt"),
    ],
)
def test_columns_that_could_both_be_meant_are_refused(tmp_path, row, words):
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    refusal(f"several columns that could be the {words}", f"--{words}-column", source=path)


def test_pairs_of_columns_win_over_one(tmp_path):
    row = {"prompt": "p", "response": "r", "chosen": "no", "rejected": "yes", "messages": TURNS}
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    assert load_pairs(path).pairs == (Pair("p", "no"),)
    assert load_pairs(path, responses="unaware").pairs == (Pair("p", "yes"),)
    path = write_jsonl(tmp_path / "b.jsonl", [{"prompt": "p", "safe": "I cannot.", "unsafe": "Sure."}])
    assert load_pairs(path, responses="unaware").pairs == (Pair("p", "Sure."),)


def test_the_context_of_a_question_is_part_of_it(tmp_path):
    rows = [{"instruction": "Who?", "context": "Ann came.", "response": "Ann."}]
    assert load_pairs(write_jsonl(tmp_path / "a.jsonl", rows)).pairs[0].prompt == "Who?\n\nAnn came."
    refusal("row 1", "'context'", source=write_jsonl(tmp_path / "b.jsonl", [{**rows[0], "context": ["Ann came."]}]))


def test_messages_without_an_answer_are_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": TURNS}, {"messages": TURNS[:4]}, {"messages": TURNS[4:]}])
    refusal("2 of 3", "row 2 (line 2) has no response", "row 3 (line 3) has no prompt", source=path)


# Refusals


def test_unknown_names_list_the_known_and_the_close(tmp_path):
    refusal("'beavertail'", "Did you mean beavertails?", "starter", "salad", "alpaca-cleaned", source="beavertail")
    refusal("'starte'", "Did you mean starter?", source="starte")
    refusal("no data source ''", source="")


def test_absent_file_and_folder(tmp_path):
    refusal("There is no data file", "absent.csv", source=tmp_path / "absent.csv")
    refusal("There is no data file", "no/such.jsonl", source="no/such.jsonl")
    refusal("is a folder", "--data-dir", source=tmp_path)


def test_unknown_suffix(tmp_path):
    path = tmp_path / "a.xlsx"
    path.write_text("x")
    refusal(".xlsx", ".csv", ".parquet", source=path)


def test_missing_columns_list_what_was_seen(tmp_path):
    path = write_csv(tmp_path / "a.csv", [{"text": "a", "label": "b"}])
    refusal("response", "text, label", "--response-column", source=path)
    refusal("prompt", "text, label", "--prompt-column", source=path, response_column="text")
    refusal(
        "no column 'ask'", "text, label", "--prompt-column", source=path, prompt_column="ask", response_column="text"
    )
    refusal("no column 'say'", "--response-column", source=path, prompt_column="text", response_column="say")
    with pytest.raises(SpinError, match="text, label"):
        load_questions(path, concept="fairness")


def test_one_column_does_not_serve_as_both(tmp_path):
    path = write_csv(tmp_path / "a.csv", [{"answer": "a"}])
    refusal("no column for the response", source=path, prompt_column="answer")


def test_other_separators_are_recognised(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt;response\nWhy?;Because\n")
    refusal("with commas between the fields", "prompt;response", source=path)
    path = tmp_path / "a.tsv"
    path.write_text("prompt,response\nWhy?,Because\n")
    refusal("tabs in a .tsv file", "prompt,response", source=path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", ""),
        ("a.csv", "prompt,response\n"),
        ("a.jsonl", "\n\n"),
        ("a.json", "[]"),
        ("a.json", ""),
        ("a.json", " "),
    ],
)
def test_empty_files_are_refused(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    refusal(name, "holds no rows", source=path)
    with pytest.raises(SpinError, match="holds no rows"):
        load_questions(path, concept="fairness")


def test_empty_parquet_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), path)
    refusal("holds no rows", source=path)


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_rows_without_text_are_named_and_counted(tmp_path, blank):
    rows = [*ROWS, {"prompt": "p", "response": blank}, *ROWS, {"prompt": blank, "response": "r"}]
    path = write_csv(tmp_path / "a.csv", rows)
    message = refusal("2 of 6 rows", "row 3", "no response", "row 6", "no prompt", "--response-column", source=path)
    assert str(path) in message
    message = refusal("row 3 (line 3)", "row 6 (line 6)", source=write_jsonl(tmp_path / "a.jsonl", rows))
    with pytest.raises(SpinError, match="1 of 6"):
        load_questions(path, concept="fairness")


def test_many_rows_without_text_are_not_all_listed(tmp_path):
    path = write_csv(tmp_path / "a.csv", [{"prompt": "p", "response": ""}] * 50)
    assert len(refusal("50 of 50", "...", source=path)) < 700


@pytest.mark.parametrize("value", [None, 3, True, ["a"], {"text": "a"}, "\ud83d"])
def test_values_that_are_not_text_are_shown(tmp_path, value):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "response": value}])
    message = refusal("row 1", "no response", "empty" if value is None else type(value).__name__, source=path)
    message.encode()  # can be printed


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings_name_the_byte(tmp_path, encoding):
    path = tmp_path / "a.csv"
    path.write_bytes("prompt,response\nWhy?,Because\nOù,là\n".encode(encoding))
    refusal("not UTF-8", "offset 0" if encoding == "utf-16" else "offset 30", "save it again as UTF-8", source=path)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress('{"prompt": "où"}'.encode(encoding)))
    refusal("not UTF-8", source=path)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", 'prompt,response\na,b\nc,"d\n', ("row 2", "not valid CSV")),
        ("a.csv", 'prompt,response\na,b\n"c"x,d\n', ("row 2 (line 3)", "not valid CSV")),
        ("a.csv", "prompt,response\na,b\nc,d,e\n", ("row 2 (line 3)", "3 fields where the header has 2")),
        ("a.csv", "prompt,response,prompt\na,b,c\n", ("twice",)),
        ("a.csv", "prompt,Prompt,response\na,b,c\n", ("case of letters",)),
        ("a.csv", "prompt,response\na,b\0\n", ("line 2", "zero byte at offset 19")),
        ("a.csv", "prompt,response\rWhy?,So.\r", ("not valid CSV",)),
        ("a.jsonl", '{"prompt": "a", "response": ' + "9" * 5000 + "}", ("row 1 (line 1)", "not valid JSON")),
        ("a.jsonl", '{"prompt": "a", "response": ' + "[" * 100_000 + "}", ("row 1 (line 1)", "not valid JSON")),
        ("a.json", '{"prompt": "a", "response": ' + "[" * 100_000 + "}", ("the file", "not valid JSON")),
        ("a.jsonl", '{"prompt": "a", "response": ' + "[" * 400 + "]" * 400 + "}", ("row 1", "found list")),
        ("a.jsonl", '{"prompt": "a", "prompt": "b", "response": "c"}', ("row 1 (line 1)", "twice: prompt")),
        ("a.jsonl", '{"prompt": "a", "response": "b"}\n{"prompt": \n', ("row 2 (line 2)", "not valid JSON")),
        ("a.jsonl", '{"prompt": "a", "response": "b"}\n["a", "b"]\n', ("row 2 (line 2)", "not an object but list")),
        ("a.json", '[{"prompt": "a",\n "response": }]', ("line 2", "not valid JSON")),
        ("a.json", '[{"prompt": "a", "response": "b"}, 3]', ("row 2", "not an object but int")),
        ("a.json", "3", ("not a list",)),
        ("a.parquet", "PAR1", ("not a readable parquet",)),
        ("a.csv.gz", "prompt,response", ("not a whole gzip",)),
    ],
)
def test_malformed_files_name_the_row(tmp_path, name, text, words):
    path = tmp_path / name
    path.write_text(text)
    refusal(name, *words, source=path)


def test_damaged_parquet_names_the_row(tmp_path):
    path = tmp_path / "a.parquet"
    texts = pyarrow.array([b"Why?", b"O\xf9 ?"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"prompt": texts, "response": ["a", "b"]}), path)
    refusal("a.parquet, row 2", "not UTF-8", source=path)
    path.write_bytes(path.read_bytes()[:-9])
    refusal("not a readable parquet", source=path)
    pyarrow.parquet.write_table(pyarrow.table([["p"], ["q"]], names=["prompt", "prompt"]), path)
    refusal("twice: prompt", source=path)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz", "a.jsonl", "a.json"])
def test_a_row_beyond_any_use_is_refused_before_it_is_in_memory(tmp_path, name, monkeypatch):
    monkeypatch.setattr(rows, "LONGEST_ROW", 1000)
    monkeypatch.setattr(rows, "LONGEST_JSON", 1000)
    text = b"\n" + b"b" * 5000
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    refusal(name, "line 2", "more than 0 MiB", source=path)


def test_line_ends_of_other_systems_and_unnamed_columns(tmp_path):
    for name, mark in (("a.csv", ","), ("a.tsv", "\t")):
        path = tmp_path / name
        path.write_bytes(f"prompt{mark}response{mark}{mark}\r\nWhy?{mark}Because.{mark}{mark}\r\n".encode())
        assert load_pairs(path).pairs == PAIRS[:1]


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    refusal("not a regular file", source=tmp_path / "a.csv")
    refusal("no data file", source="a" * 5000 + ".csv")
    refusal("no data file", source="~nobody-there/a.csv")


def test_cut_gzip_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl.gz", ROWS * 50)
    path.write_bytes(path.read_bytes()[:-12])
    refusal("not a whole gzip file", source=path)


# Known names


@pytest.fixture
def folder(tmp_path):
    """Tiny files under the names of the development data."""
    for concept in ("fairness", "privacy"):
        for label in ("safe", "unsafe"):
            rows = [{"prompt": f"{concept} {number}", "response": f"{label} {number}"} for number in range(3)]
            write_csv(tmp_path / f"beaver_train330k_{concept}_{label}_1k.csv", rows)
        write_csv(tmp_path / f"salad_{concept}_dev.csv", [{"questions": f"{concept}?"}])
    write_csv(tmp_path / "alpaca_cleaned_no_safety_train_1k.csv", ROWS)
    (tmp_path / "README.md").write_text("notes")
    return tmp_path


@pytest.mark.parametrize("concept", ["fairness", "privacy"])
def test_known_names_read_prepared_tables(folder, concept):
    for responses, label in (("aware", "safe"), ("unaware", "unsafe")):
        pair_set = load_pairs("beavertails", concept=concept, responses=responses, data_dir=folder)
        assert pair_set.pairs[2] == Pair(f"{concept} 2", f"{label} 2")
        assert pair_set.name == f"beavertails/beaver_train330k_{concept}_{label}_1k.csv"
        assert (pair_set.source, pair_set.left_out) == ("beavertails", ())
    assert load_questions("salad", concept=concept, data_dir=folder).questions == (Question(f"{concept}?"),)
    assert load_pairs("alpaca-cleaned", data_dir=str(folder)).pairs == PAIRS
    assert len(load_questions("beavertails", concept=concept, data_dir=folder).questions) == 3


def test_known_names_refuse_what_is_ambiguous_absent_or_unfit(folder, tmp_path):
    refusal("fairness, privacy", "None", source="beavertails", data_dir=folder)
    refusal("'age'", "fairness, privacy", source="beavertails", concept="age", data_dir=folder)
    refusal("questions and no responses", source="salad", concept="privacy", data_dir=folder)
    refusal("does not exist", "--data-dir", source="alpaca-cleaned", data_dir=folder / "absent")
    refusal("is a file", "--data-dir", source="alpaca-cleaned", data_dir=folder / "README.md")
    write_csv(folder / "beaver_new_privacy_safe.csv", ROWS)
    refusal(
        "2 files",
        "beaver_new_privacy_safe.csv",
        "beaver_train330k_privacy_safe_1k.csv",
        source="beavertails",
        concept="privacy",
        data_dir=folder,
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    write_csv(empty / "other.csv", ROWS)
    refusal("alpaca_cleaned*", "other.csv", "yahma/alpaca-cleaned", source="alpaca-cleaned", data_dir=empty)


def beaver_row(prompt: str, response: str, safe: bool, *categories: str) -> dict:
    names = ("discrimination,stereotype,injustice", "privacy_violation", "violence,aiding_and_abetting,incitement")
    category = {name: name in categories for name in names}
    return {"prompt": prompt, "response": response, "category": category, "is_safe": safe}


def hub_folder(root: Path) -> Path:
    """Tiny files laid out as in the repositories on the hub."""
    fairness, privacy = "discrimination,stereotype,injustice", "privacy_violation"
    rows = [
        beaver_row("about a group", "careful", True),  # safe, before its prompt is flagged
        beaver_row("about a group", "rude", False, fairness),
        beaver_row("about an address", "told", False, privacy, fairness),
        beaver_row("about an address", "kept", True),
        beaver_row("about an address", " ", True),  # no text
        beaver_row("about tea", "milk", True),
    ]
    write_jsonl(root / "round0/330k/train.jsonl.gz", rows)
    levels = ["O1: Representation & Toxicity Harms", "O2: Unfair Representation", "O7: Stereotyping"]
    private = ["O3: Information & Safety Harms", "O9: Privacy Infringement", "O20: Sharing Data"]
    columns = ("1-category", "2-category", "3-category")
    items = [{"question": "group?", **dict(zip(columns, levels, strict=True))}]
    items += [{"question": "address?", **dict(zip(columns, private, strict=True))}]
    (root / "base_set.json").write_text(json.dumps(items))
    alpaca = [{"instruction": "Add", "input": "1, 2", "output": "3"}, {"instruction": "Hi", "input": "", "output": ""}]
    (root / "alpaca_data_cleaned.json").write_text(json.dumps(alpaca))
    return root


@pytest.mark.parametrize("local", [True, False])
def test_known_names_read_the_hubs_own_files(tmp_path, monkeypatch, local):
    root = hub_folder(tmp_path)
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.append((name, options)) or str(root)
    )
    data_dir = root if local else None

    def beavertails(concept, responses):
        return load_pairs("beavertails", concept=concept, responses=responses, data_dir=data_dir)

    assert beavertails("fairness", "aware").pairs == (
        Pair("about a group", "careful"),
        Pair("about an address", "kept"),
    )
    assert beavertails("fairness", "unaware").pairs == (Pair("about a group", "rude"), Pair("about an address", "told"))
    assert beavertails("privacy", "aware").pairs == (Pair("about an address", "kept"),)
    assert beavertails("privacy", "aware").left_out == ("1 row without text",)
    assert beavertails("privacy", "unaware").name == "beavertails/privacy/unaware"
    assert load_questions("salad", concept="fairness", data_dir=data_dir).questions == (
        Question("group?", "O7: Stereotyping"),
    )
    assert load_questions("salad", concept="privacy", data_dir=data_dir).questions[0].prompt == "address?"
    alpaca = load_pairs("alpaca-cleaned", data_dir=data_dir)
    assert (alpaca.pairs, alpaca.left_out) == ((Pair("Add\n\n1, 2", "3"),), ("1 row without text",))
    if local:
        assert asked == []
    else:
        names = ["PKU-Alignment/BeaverTails", "OpenSafetyLab/Salad-Data", "yahma/alpaca-cleaned"]
        assert list(dict.fromkeys(name for name, _ in asked)) == names
        assert all(options["repo_type"] == "dataset" for _, options in asked)


def test_changed_hub_files_are_refused(tmp_path):
    write_jsonl(tmp_path / "train.jsonl.gz", [{"prompt": "p", "response": "r"}])
    refusal("no column category, is_safe", "row 1", source="beavertails", concept="privacy", data_dir=tmp_path)
    write_jsonl(tmp_path / "train.jsonl.gz", [beaver_row("p", "r", True)])
    refusal("no rows for the concept 'privacy'", source="beavertails", concept="privacy", data_dir=tmp_path)


# The hub


def fake_hub(monkeypatch, root: Path, names: list[str]) -> None:
    for name in names:
        write_jsonl(root / name, [{"prompt": name, "response": "r"}])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(root))


def test_hub_sets_prefer_the_training_split_and_join_shards(tmp_path, monkeypatch):
    shards = [f"data/train-0000{number}-of-00002.jsonl" for number in (1, 0)]
    fake_hub(monkeypatch, tmp_path, [*shards, "data/test-00000-of-00001.jsonl", "dataset_infos.json"])
    pair_set = load_pairs("owner/name")
    assert [pair.prompt for pair in pair_set.pairs] == shards[::-1]
    assert (pair_set.name, pair_set.source) == ("owner/name", "owner/name")


def test_hub_sets_without_a_training_split(tmp_path, monkeypatch):
    fake_hub(monkeypatch, tmp_path, ["all.jsonl"])
    assert len(load_pairs("owner/name").pairs) == 1
    assert load_questions("owner/name", concept="x").questions == (Question("all.jsonl"),)


def test_hub_sets_of_several_tables_or_none_are_refused(tmp_path, monkeypatch):
    fake_hub(monkeypatch, tmp_path, ["a/train.jsonl", "b/train.jsonl"])
    refusal("2 tables", "train.jsonl", source="owner/name")
    empty = tmp_path / "empty"
    empty.mkdir()
    fake_hub(monkeypatch, empty, [])
    refusal("no file that matches", source="owner/name")


@pytest.mark.parametrize("source", ["owner/name", "alpaca-cleaned"])
@pytest.mark.parametrize("error", [ConnectionError("no route\nmore"), HFValidationError("bad")])
def test_unreachable_hub_explains_local_folders(monkeypatch, error, source):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    message = refusal("could not be fetched", "--data-dir", "starter", source=source)
    assert "more\n" not in message


# The development data


@pytest.mark.skipif(not SHARED.is_dir(), reason="the development data, ../shared, are not beside this checkout")
def test_development_data():
    for concept, questions in (("fairness", 1062), ("privacy", 311)):
        aware = load_pairs("beavertails", concept=concept, data_dir=SHARED)
        unaware = load_pairs("beavertails", concept=concept, responses="unaware", data_dir=SHARED)
        assert len(aware.pairs) == len(unaware.pairs) == 1000
        assert aware.sha256 != unaware.sha256
        assert len(load_questions("salad", concept=concept, data_dir=SHARED).questions) == questions
    assert len(load_pairs("alpaca-cleaned", data_dir=SHARED).pairs) == 1000
    assert len(load_pairs(SHARED / "labelled_answers_dev.jsonl").pairs) == 156


# The starter data (their content: test_starter.py)


@pytest.mark.parametrize("concept", ["age", "over_refusal"])
def test_starter_lists_its_concepts(concept):
    refusal("starter", "fairness, privacy, truthfulness, helpfulness, general", source="starter", concept=concept)
    with pytest.raises(SpinError, match="fairness, privacy, truthfulness, helpfulness, over_refusal"):
        load_questions("starter", concept="general")


# Samples


@given(st.lists(st.text(), min_size=1, max_size=40), st.integers(1, 40), st.integers(0, 2**32))
def test_samples_keep_order_and_part_the_items(items, examples, seed):
    items = list(enumerate(items))
    if examples > len(items):
        with pytest.raises(SpinError, match=f"has {len(items)} rows"):
            sample(items, examples, seed)
        return
    chosen, rest = split_sample(items, examples, seed)
    assert chosen == sample(items, examples, seed)
    assert len(chosen) == examples
    assert list(chosen) == sorted(chosen)
    assert list(rest) == sorted(rest)
    assert sorted(chosen + rest) == items


def test_samples_are_seeded_and_stable():
    assert sample(range(1000), 5, 0) == (394, 430, 776, 864, 911)
    assert sample(range(1000), 5, 0) != sample(range(1000), 5, 1)


def test_all_rows_and_exactly_all_rows():
    items = tuple("abc")
    assert split_sample(items, None, 0) == split_sample(items, 3, 7) == (items, ())


def test_samples_refuse_too_many_and_none_at_all():
    with pytest.raises(SpinError) as caught:
        sample("abc", 4, 0, name="beavertails")
    assert all(word in str(caught.value) for word in ("4 examples", "beavertails has 3 rows", "--examples 3"))
    with pytest.raises(SpinError, match="--examples 1 or more"):
        sample("abc", 0, 0)
