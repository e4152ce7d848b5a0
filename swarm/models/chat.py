"""Conversations as OpenAI's API has them, in the shape that a model's chat template expects.

OpenAI's wire and templates differ: there, arguments of calls are JSON in a string, contents may be lists of parts, and
there are roles that most templates do not know. `plain_messages` is what is the same for all templates; what a
template does with it is tried. What would not reach the model is refused, not left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from swarm.errors import InvalidInput
from swarm.models.picture_parts import KIND, picture_part, pictures_in

Message = dict[str, Any]
Made = TypeVar("Made")

MARK = "swarmmark"
"""What stands in for texts when it is tried which of them a template shows: one word, with nothing to escape."""


def refused(words: str, field: str = "messages") -> InvalidInput:
    """The error for one field of a query."""
    return InvalidInput(words, field=field)


# ---- the same for all templates -----------------------------------------------------------------------------------


def plain_messages(messages: Sequence[Any]) -> list[Message]:
    """Contents are texts, or lists of parts where there are pictures (or left out beside calls), arguments objects;
    null is left out. Raises InvalidInput."""
    if not messages:
        raise refused("messages: at least one is needed")
    plain = [_plain(message, f"messages[{place}]") for place, message in enumerate(messages)]
    _match(plain)
    return plain


def _match(messages: Sequence[Message]) -> None:
    """Results of calls say by which call, and by which name: the wire has one of both, templates want either."""
    names: dict[str, str] = {}
    for place, message in enumerate(messages):
        for call in message.get("tool_calls", []):
            call.setdefault("id", f"call{place:05}")
            names[str(call["id"])] = call["function"]["name"]
        if message["role"] == "tool" and message.get("tool_call_id") in names:
            message.setdefault("name", names[message["tool_call_id"]])
        elif message["role"] == "tool" and "tool_call_id" not in message:
            calls = [key for key, name in names.items() if name == message.get("name")]
            if calls:
                message["tool_call_id"] = calls[-1]


def _plain(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise refused(f"{where} is an object with a role and a content")
    plain = _there(message)
    if not isinstance(plain.get("role"), str) or not plain["role"]:
        raise refused(f"{where}.role is needed: system, user, assistant or tool")
    if "audio" in plain:
        raise refused(f"{where}.audio is not available: this model reads text alone")
    content = _content(plain.get("content"), where, plain["role"])
    refusal = plain.pop("refusal", "")
    if not isinstance(refusal, str):
        raise refused(f"{where}.refusal is a text")
    calls = _calls(plain, where)
    if content is None and not refusal and not calls:
        raise refused(f"{where}.content is needed: a text, or a list of parts of type text")
    # What a model said when it refused is what it said.
    if isinstance(content, list):
        plain["content"] = [*content, {"type": "text", "text": refusal}] if refusal else content
    elif content is not None or refusal:
        plain["content"] = (content or "") + refusal
    if calls:
        plain["tool_calls"] = calls
    if plain["role"] == "function":
        plain["role"] = "tool"
    return plain


def _content(content: Any, where: str, role: str) -> str | list[Message] | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise refused(f"{where}.content is a text, or a list of parts of type text")
    parts = [_part(part, f"{where}.content[{place}]", role) for place, part in enumerate(content)]
    return parts if any(part["type"] == KIND for part in parts) else "".join(part["text"] for part in parts)


def _part(part: Any, where: str, role: str) -> Message:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str):
        raise refused(f"{where} is an object with a type, such as text")
    if kind == KIND:
        return picture_part(part, where, role)
    if kind != "text" and not (kind == "refusal" and role == "assistant"):
        raise refused(f"{where} is of type {kind[:40]}: there are text and, for models that see, {KIND}")
    if not isinstance(part.get(kind), str):
        raise refused(f"{where}.{kind} is a text")
    return {"type": "text", "text": str(part[kind])}


def _calls(plain: Message, where: str) -> list[Message]:
    """The calls of a message, also of the kind from before tools; takes both out of it."""
    calls, old = plain.pop("tool_calls", []), plain.pop("function_call", None)
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise refused(f"{where}.tool_calls is a list")
    made = [_call(call, f"{where}.tool_calls[{place}]") for place, call in enumerate(calls)]
    if old is not None:
        made.append({"type": "function", "function": _function(old, f"{where}.function_call")})
    return made


def _call(call: Any, where: str) -> Message:
    if not isinstance(call, Mapping):
        raise refused(f"{where} is an object with a function")
    kind = call.get("type") or "function"
    if kind != "function":
        raise refused(f"{where} is of type {str(kind)[:40]}: only functions are called here")
    return {**_there(call), "type": "function", "function": _function(call.get("function"), f"{where}.function")}


def _function(function: Any, where: str) -> Message:
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise refused(f"{where} is an object with a name and arguments")
    return {**_there(function), "arguments": _arguments(function.get("arguments"), f"{where}.arguments")}


def _arguments(arguments: Any, where: str) -> Message:
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return {}
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError) as error:
        raise refused(f"{where} is not JSON: {error}") from error
    if not isinstance(value, Mapping):
        raise refused(f"{where} is a JSON object, in a string")
    return dict(value)


def plain_tools(tools: Sequence[Any]) -> list[Message]:
    """Definitions of functions. Raises InvalidInput."""
    return [_tool(tool, f"tools[{place}]") for place, tool in enumerate(tools)]


def _tool(tool: Any, where: str) -> Message:
    kind = tool.get("type") if isinstance(tool, Mapping) else None
    if kind != "function":
        raise refused(f"{where} is of type {str(kind)[:40]}: there are functions alone", "tools")
    function = tool.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise refused(f"{where}.function is an object with a name", "tools")
    return {**_there(tool), "function": _there(function)}


def _there(fields: Mapping[str, Any]) -> Message:
    """Without those that are null."""
    return {key: value for key, value in fields.items() if value is not None}


# ---- what a template makes of it ----------------------------------------------------------------------------------


class ChatTemplate:
    """The chat template of a tokenizer, or of a processor: a program of the model's authors."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._knows_developers = "developer" in str(tokenizer.chat_template)

    def ids(self, messages: Sequence[Any], tools: Sequence[Any] = ()) -> list[int]:
        """The prompt for an answer to a conversation of text, in OpenAI's shape. Raises InvalidInput."""
        for where, _ in pictures_in(plain_messages(messages)):
            raise refused(f"{where} is of type {KIND}: this model reads text alone")
        how = {"tokenize": True, "return_dict": False}
        return self.whole(messages, tools, lambda shaped, defined: list(self.apply(shaped, defined, **how)), SHAPES)

    def whole(
        self,
        messages: Sequence[Any],
        tools: Sequence[Any],
        make: Callable[[Sequence[Message], Sequence[Message]], Made],
        shapes: Sequence[Callable[[Message], Message]],
    ) -> Made:
        """What `make` makes of a conversation in OpenAI's shape and of tools. Raises InvalidInput.

        Of the `shapes` in which templates may want a conversation, the first that this one takes whole.
        """
        plain, defined = plain_messages(messages), plain_tools(tools)
        if not self._knows_developers:
            plain = [{**each, "role": "system"} if each["role"] == "developer" else each for each in plain]
        complaint: InvalidInput | None = None
        tried: list[list[Message]] = []
        for shape in shapes:
            shaped = [shape(each) for each in plain]
            if shaped in tried:
                continue
            tried.append(shaped)
            try:
                made = make(shaped, defined)
                self._check_whole(shaped, defined)
            except InvalidInput as error:
                complaint = complaint or error
            except Exception as error:
                words = f"the model's chat template refuses this conversation: {error}"
                complaint = complaint or refused(words)
            else:
                return made
        assert complaint is not None
        raise complaint

    def apply(self, messages: Sequence[Message], tools: Sequence[Message], **options: Any) -> Any:
        """What the library makes of a conversation. Raises what the template raises."""
        return self._tokenizer.apply_chat_template(
            list(messages), tools=list(tools) or None, add_generation_prompt=True, **options
        )

    def _check_whole(self, messages: Sequence[Message], tools: Sequence[Message]) -> None:
        """Try whether every message is shown, with marks in place of texts and names. Raises InvalidInput.

        Tools need not be: a model that was never taught any goes on as it can, as it does in plain transformers.
        """
        marked = [_marked(message, f"{MARK}{place}x") for place, message in enumerate(messages)]
        try:
            text = str(self.apply(marked, tools, tokenize=False)).casefold()
        except Exception:
            # It looks into contents: then there is no telling.
            return
        for place, message in enumerate(messages):
            if any(f"{MARK}{place}x{part}" not in text for part in _parts_that_count(message)):
                what = f"messages[{place}], of role {message['role']},"
                raise refused(f"{what} does not reach the model: its chat template leaves it out")


def _marked(message: Message, mark: str) -> Message:
    """The same message, with marks for its content and its calls."""
    marked = dict(message)
    if _says(message):
        text = f"{mark}content"
        marked["content"] = text if isinstance(message["content"], str) else [{"type": "text", "text": text}]
    if "tool_calls" in message:
        marked["tool_calls"] = [_marked_call(call, f"{mark}call{place}x") for place, call in
                                enumerate(message["tool_calls"])]  # fmt: skip
    return marked


def _marked_call(call: Message, mark: str) -> Message:
    arguments = call["function"]["arguments"]
    marked: Any = {f"{mark}key": f"{mark}value"} if arguments not in ({}, "{}") else {}
    marked = json.dumps(marked) if isinstance(arguments, str) else marked
    return {**call, "function": {**call["function"], "name": f"{mark}name", "arguments": marked}}


def _says(message: Message) -> bool:
    content = message.get("content") or ""
    return bool((content if isinstance(content, str) else "".join(part.get("text", "") for part in content)).strip())


def _parts_that_count(message: Message) -> list[str]:
    """The marks that have to be shown. Beside calls a content need not be: many templates have no place for both."""
    calls = message.get("tool_calls", [])
    if not calls:
        return ["content"] if _says(message) else []
    parts = []
    for place, call in enumerate(calls):
        parts.append(f"call{place}xname")
        if call["function"]["arguments"] not in ({}, "{}"):
            parts.append(f"call{place}xvalue")
    return parts


def _as_it_is(message: Message) -> Message:
    return message


def _empty_content(message: Message) -> Message:
    """For templates that add to the content without a look."""
    return {**message, "content": message.get("content") or ""}


def text_arguments(message: Message) -> Message:
    """For templates that print arguments as they come."""
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _both(message: Message) -> Message:
    return text_arguments(_empty_content(message))


def _list_of_parts(message: Message) -> Message:
    """For templates of models that also see or hear."""
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def short_ids(message: Message) -> Message:
    """For templates that want ids of calls to be of nine letters or digits."""
    short = dict(message)
    if "tool_calls" in message:
        short["tool_calls"] = [{**call, "id": _nine_of(call.get("id"))} for call in message["tool_calls"]]
    if "tool_call_id" in message:
        short["tool_call_id"] = _nine_of(message["tool_call_id"])
    return short


def _nine_of(id: Any) -> str:
    return hashlib.sha256(str(id).encode(errors="replace")).hexdigest()[:9]


def after(first: Callable[[Message], Message], then: Callable[[Message], Message]) -> Callable[[Message], Message]:
    """One shape of the other."""
    return lambda message: then(first(message))


WITH_IDS = (_as_it_is, _empty_content, text_arguments, _both, _list_of_parts)
SHAPES: Sequence[Callable[[Message], Message]] = (*WITH_IDS, *(after(shape, short_ids) for shape in WITH_IDS))
