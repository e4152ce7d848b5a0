"""swarm-chat: what it says to the model, what it shows, and what it frees."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from survey.configs import POSITIONS
from swarm.cli import chat
from swarm.cli.chat import lines, main
from swarm.cli.conversation import ChatOptions, Conversation, Responder, unchanged
from swarm.cli.screen import Screen, Streamer
from swarm.client.session import Notice
from swarm.errors import ContextTooLong, InvalidInput
from tests.checkpoints import Served, make_tokenizer, reference, save, spans_of
from tests.test_imports import HEAVY, modules_after

PEER = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWSPfVm14AFBKqmwqBxnKhjQyMJDjYc7vKSPj54QZyHkUe"
TEMPLATE = """{% for m in messages %}{% if m.role == "user" %}a{% elif m.role == "system" %}b{% endif %}{{ m.content }}
{%- if m.role == "assistant" %}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}f{% endif %}"""
FORGETFUL = """{% for m in messages %}{% if m.role == "user" %}a{% else %}c{% endif %}{{ m.content }}{% endfor %}f"""
GREEDY = ChatOptions(temperature=0, max_new_tokens=8)


# ---- the command line ------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    shown = "from swarm.cli.chat import main\nmain(['--help'], standalone_mode=False)"
    assert not modules_after(shown) & HEAVY


@pytest.mark.parametrize(
    "arguments",
    [[], ["m", "--temperature", "-1"], ["m", "--max-new-tokens", "0"], ["m", "--dtype", "int3"], ["m", "--seed", "x"]],
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, arguments).exit_code == 2


def test_nobody_to_join_through_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWARM_INITIAL_PEERS", raising=False)
    monkeypatch.setattr("swarm.net.initial_peers.packaged_peers", lambda: ())
    result = CliRunner().invoke(main, ["model"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no peers to join through")


@pytest.mark.parametrize(
    ("temperature", "options"),
    [
        (None, {}),
        (0.0, {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}),
        (0.7, {"do_sample": True, "temperature": 0.7}),
    ],
)
def test_temperature(temperature: float | None, options: dict[str, Any]) -> None:
    assert ChatOptions(temperature=temperature).sampling() == options


# ---- what is said ----------------------------------------------------------------------------------------------


def templated(template: str | None = TEMPLATE) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def text_of(conversation: Conversation, question: str) -> str:
    return str(conversation.tokenizer.decode(conversation.ids(question)))


def test_a_conversation_is_kept_in_the_models_template() -> None:
    conversation = Conversation(templated(), system="ee")
    assert text_of(conversation, "cd") == "beeacdf"
    conversation.keep("cd", "dd")
    eos = conversation.tokenizer.eos_token
    assert text_of(conversation, "c") == f"beeacddd{eos}acf"
    assert text_of(conversation, "d") == f"beeacddd{eos}adf", "asking alone keeps nothing"


def test_without_a_template_text_goes_on_by_itself() -> None:
    conversation = Conversation(templated(None))
    conversation.keep("abc", "def")
    assert text_of(conversation, "cd") == "cd"
    with pytest.raises(InvalidInput, match="--system"):
        Conversation(templated(None), system="be brief")


def test_a_template_may_refuse() -> None:
    conversation = Conversation(templated("{{ raise_exception('no system prompts') }}"), system="b")
    with pytest.raises(InvalidInput, match="no system prompts"):
        conversation.ids("a")


@pytest.mark.parametrize(
    ("known", "ids", "same"),
    [
        ([], [1], 0),
        ([1, 2], [1, 2, 3], 2),
        ([1, 2, 3], [1, 2, 4, 5], 2),
        ([9], [1, 2], 0),
        ([1, 2, 3], [1, 2, 3], 2),
        ([1, 2, 3], [1, 2], 1),
    ],
)
def test_what_is_unchanged(known: list[int], ids: list[int], same: int) -> None:
    assert unchanged(known, ids) == same


# ---- what is shown ---------------------------------------------------------------------------------------------


def tell(decode: Callable[[Sequence[int]], str], prompt: list[int], tokens: list[int]) -> tuple[list[str], Streamer]:
    parts: list[str] = []
    streamer = Streamer(decode, parts.append)
    streamer.put(torch.tensor([prompt]))
    for token in tokens:
        streamer.put(torch.tensor([token]))
    streamer.end()
    return parts, streamer


def test_characters_of_several_tokens_are_shown_when_they_are_whole() -> None:
    data = list("né→!".encode())
    parts, streamer = tell(lambda ids: bytes(ids).decode(errors="replace"), [65], data)
    assert parts == ["n", "é", "→", "!"]
    assert streamer.text == "né→!"


def test_what_stays_unfinished_is_shown_at_the_end() -> None:
    parts, _ = tell(lambda ids: bytes(ids).decode(errors="replace"), [65], list("é".encode())[:1])
    assert parts == ["\N{REPLACEMENT CHARACTER}"]


def test_a_space_that_only_later_tokens_have_is_kept() -> None:
    words = {1: "one", 2: "two", 3: "three"}
    parts, _ = tell(lambda ids: " ".join(words[i] for i in ids), [1, 2], [3, 1])
    assert parts == [" three", " one"]


def test_the_speed_counts_from_the_first_token() -> None:
    _, streamer = tell(lambda ids: "", [1], [1, 1, 1])
    streamer.times = [10.0, 12.0, 12.5, 13.0]
    assert streamer.speed() == "3 tokens, 2.0 tokens/s, 2.00 s to the first"
    streamer.times = [10.0, 12.0]
    assert streamer.speed() == "1 token, 2.00 s to the first"
    streamer.times = [10.0]
    assert streamer.speed() == "no tokens"


def test_notes_go_to_stderr_and_waiting_is_never_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    for talkative in (True, False):
        screen = Screen(talkative=talkative)
        screen.write("half a sen")
        screen.hear(Notice("rerouted", "0:2@abc → 2:6@def"))
        screen.hear(Notice("waiting", "nobody hosts 2:6"))
        screen.write("tence")
        screen.end_line()
        screen.end_line()
        shown = capsys.readouterr()
        assert shown.out == "half a sentence\n"
        assert shown.err == "[rerouted 0:2@abc → 2:6@def]\n" * talkative + "[nobody hosts 2:6]\n"


class Typing:
    """A terminal at which somebody types, presses Ctrl-C and then Ctrl-D."""

    def __init__(self, *presses: str | type[BaseException]) -> None:
        self.presses = list(presses)

    def __call__(self) -> str:
        press = self.presses.pop(0)
        if isinstance(press, str):
            return press
        raise press


def test_ctrl_c_at_the_prompt_is_no_end_and_ctrl_d_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_typed", Typing("one\n", KeyboardInterrupt, "\n", " two \n", EOFError))
    assert list(lines(terminal=True)) == ["one", " two "]


def test_every_line_of_a_pipe_is_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\r\nthree"))
    assert list(lines(terminal=False)) == ["one", "two", "three"]


# ---- with servers ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = save(tmp_path_factory.mktemp("chat") / "llama", "llama")
    templated().save_pretrained(folder)
    running = Served(folder, spans_of(2))
    yield running
    running.close()


@pytest.fixture(scope="module")
def whole(servers: Served) -> Any:
    return reference(servers.folder)


def expected(whole: Any, tokenizer: Any, text: str) -> str:
    """What plain transformers answers to this prompt."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    answer = whole.generate(ids, do_sample=False, max_new_tokens=GREEDY.max_new_tokens)[0, ids.shape[1] :]
    return str(tokenizer.decode(answer, skip_special_tokens=True))


@pytest.mark.parametrize("template", [TEMPLATE, FORGETFUL, None], ids=["plain", "forgetful", "none"])
def test_answers_are_those_of_plain_transformers(
    servers: Served, whole: Any, template: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    notices: list[Notice] = []
    conversation = Conversation(templated(template))
    talk = Responder(servers.model(on_notice=notices.append), conversation, GREEDY, Screen(talkative=False))
    for question in ("abc", "de", "ffa"):
        right = expected(whole, conversation.tokenizer, text_of(conversation, question))
        talk.answer(question)
        assert capsys.readouterr().out == right + "\n"
    assert len(notices) == (3 if template is None else 1), "a conversation stays on one cache"
    talk.forget()
    servers.assert_free()


def test_a_failure_leaves_the_conversation_as_it_was(servers: Served) -> None:
    talk = Responder(servers.model(), Conversation(templated()), GREEDY, Screen(talkative=False))
    talk.answer("abc")
    said = list(talk.conversation.messages)
    with pytest.raises(ContextTooLong, match=f"more than the model's {POSITIONS}"):
        talk.answer("d" * POSITIONS)
    assert talk.conversation.messages == said
    talk.answer("e")
    talk.forget()
    servers.assert_free()


def test_an_answer_ends_where_the_context_does(servers: Served) -> None:
    talk = Responder(
        servers.model(), Conversation(templated(None)), ChatOptions(temperature=0), Screen(talkative=False)
    )
    talk.model.generation_config.eos_token_id = None
    talk.answer("d" * (POSITIONS - 3))


def test_ctrl_c_stops_the_answer_and_frees_the_caches(servers: Served, capsys: pytest.CaptureFixture[str]) -> None:
    talk = Responder(servers.model(), Conversation(templated()), GREEDY, Screen(talkative=False))
    talk.answer("abc")
    shown = capsys.readouterr().out
    write = talk.screen.write

    def interrupted(text: str) -> None:
        write(text)
        talk.screen.write = write  # type: ignore[method-assign]
        raise KeyboardInterrupt

    talk.screen.write = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt) as kept:
        talk.answer("de")
    del kept
    servers.assert_free()
    part = capsys.readouterr().out
    assert [m["content"] for m in talk.conversation.messages] == ["abc", shown.strip(), "de", part]
    talk.answer("f")
    talk.forget()
    servers.assert_free()


def test_a_seed_makes_chance_repeatable(servers: Served, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for _ in range(2):
        options = ChatOptions(max_new_tokens=8, temperature=1.0, seed=3)
        Responder(servers.model(), Conversation(templated(None)), options, Screen(talkative=False)).answer("abc")
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


@pytest.fixture
def run(servers: Served, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The whole command, but for the network that it joins."""
    monkeypatch.setattr("swarm.client.swarm.connect", lambda *peers, **options: servers.client("chat"))

    def invoke(*arguments: str, typed: str | bytes) -> Result:
        return CliRunner().invoke(main, [str(servers.folder), "-p", PEER, *arguments], input=typed)

    return invoke


def test_the_command_in_a_pipe(servers: Served, whole: Any, run: Callable[..., Result]) -> None:
    result = run("--temperature", "0", "--max-new-tokens", "8", "--dtype", "float32", typed="abc\n\n")
    assert result.exit_code == 0, result.output
    assert result.stdout == expected(whole, templated(), "aabcf") + "\n"
    notes = result.stderr.splitlines()
    assert sum("can read what you type" in note for note in notes) == 1
    assert notes[-2].startswith("[route 0:2@")
    assert "tokens/s" in notes[-1]
    servers.assert_free()


def test_what_is_typed_and_is_no_text_is_refused(servers: Served, run: Callable[..., Result]) -> None:
    result = run("-q", typed=b"abc \xff\n")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: what was typed is not text in UTF-8")
    assert result.stdout == ""
    servers.assert_free()


def test_failures_of_the_command_are_one_line(servers: Served, run: Callable[..., Result]) -> None:
    for arguments, typed, words in (
        ((), "d" * POSITIONS, "error: 50 tokens have been said"),
        (
            ("--dtype", "bfloat16", "--max-wait", "0.1"),
            "abc",
            "error: nobody computes blocks 0:6 as is asked here, in bfloat16",
        ),
    ):
        result = run("-q", *arguments, typed=typed)
        assert result.exit_code == 1
        assert result.stderr.splitlines()[-1].startswith(words), result.stderr
        assert result.stdout == ""
    servers.assert_free()


def test_a_folder_that_holds_no_model_or_no_tokenizer(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    for folder, words in ((tmp_path, "error: "), (checkpoints("llama"), "error: the tokenizer of ")):
        result = CliRunner().invoke(main, [str(folder), "-p", PEER])
        assert result.exit_code == 1
        assert result.stderr.startswith(words)
        assert len(result.stderr.splitlines()) == 1
