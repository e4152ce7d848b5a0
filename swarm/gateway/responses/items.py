"""Items of OpenAI's responses as messages of a conversation, and tools as they are told to a chat template. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from swarm.errors import InvalidInput
from swarm.models.chat import Message, refused

PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
SYSTEM = ("system", "developer")


def messages_of(instructions: str | None, items: str | Sequence[Any]) -> list[Message]:
    """The conversation. Reasoning is passed over, as it is by OpenAI's: what was thought is not said again.

    Instructions and what stands before the first turn become one message: many templates know one, at the beginning.
    Raises InvalidInput for items of other kinds.
    """
    messages: list[Message] = [] if instructions is None else [{"role": "system", "content": instructions}]
    if isinstance(items, str):
        return [*messages, {"role": "user", "content": items}]
    for place, item in enumerate(items):
        _add(messages, item, f"input[{place}]")
    return _joined(messages)


def _add(messages: list[Message], item: Any, where: str) -> None:
    kind = item.get("type", "message") if isinstance(item, Mapping) else None
    if not isinstance(item, Mapping) or not isinstance(kind, str):
        raise refused(f"{where} is an object with a type, or a message with a role and a content", "input")
    match kind:
        case "message":
            messages.append({"role": item.get("role"), "content": contents_of(item.get("content"))})
        case "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": _text(item, "call_id", where), "type": "function", "function": function}
            last = messages[-1] if messages else {}
            if last.get("role") != "assistant":
                messages.append(last := {"role": "assistant"})
            last.setdefault("tool_calls", []).append(call)
        case "function_call_output":
            output = contents_of(item.get("output"))
            messages.append({"role": "tool", "tool_call_id": _text(item, "call_id", where), "content": output})
        case "reasoning":
            pass
        case _:
            words = f"{where} is of type {kind[:40]}: there are message, function_call and function_call_output here"
            raise refused(words, "input")


def _text(item: Mapping[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise refused(f"{where}.{name} is a text", "input")
    return value


def contents_of(content: Any) -> Any:
    """A content with its parts as chat completions call them; what is none of these stays, and is refused there."""
    if not isinstance(content, list):
        return content
    return [_part(part) for part in content]


def _part(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(kind, str) and kind in PARTS:
        name = PARTS[kind]
        return {"type": name, name: part.get(name)}
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        url = {"url": part["image_url"], **({"detail": part["detail"]} if "detail" in part else {})}
        return {"type": "image_url", "image_url": url}
    return part


def _joined(messages: list[Message]) -> list[Message]:
    first = next((place for place, each in enumerate(messages) if each.get("role") not in SYSTEM), len(messages))
    texts = [_plain(each.get("content")) for each in messages[:first]]
    if first < 2 or None in texts:
        return messages
    return [{"role": "system", "content": "\n\n".join(str(text) for text in texts)}, *messages[first:]]


def _plain(content: Any) -> str | None:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else None  # type: ignore[arg-type]


def tools_of(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Functions, as chat completions have them. Raises InvalidInput for tools of other kinds."""
    return [_tool(tool, f"tools[{place}]") for place, tool in enumerate(tools)]


def _tool(tool: Any, where: str) -> dict[str, Any]:
    kind = tool.get("type") if isinstance(tool, Mapping) else None
    if kind != "function":
        words = f"{where} is of type {str(kind)[:40]}: there are functions alone, nothing is searched for or run here"
        raise refused(words, "tools")
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}


def choice_of(choice: Any) -> Any:
    """A choice of tools, as chat completions have it."""
    match choice:
        case {"type": "function", "name": name}:
            return {"type": "function", "function": {"name": name}}
        case {"type": "allowed_tools", "mode": mode, "tools": [*tools]}:
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [choice_of(t) for t in tools]}}
    if isinstance(choice, Mapping):
        words = "tool_choice is not right: none, auto, required, a function or allowed_tools is needed"
        raise InvalidInput(words, field="tool_choice")
    return choice
