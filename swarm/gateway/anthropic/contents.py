"""Anthropic's messages as those of a conversation in OpenAI's shape, and tools as they are told to a template. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from swarm.models.chat import Message, refused
from swarm.wire import swarm_pb2 as pb

PASSED_OVER = ("thinking", "redacted_thinking")
"""What was thought is not said again, as it is not by Anthropic's."""


def messages_of(system: Any, messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The conversation. Raises InvalidInput for what there is no place for."""
    made: list[Message] = []
    if system is not None:
        made.append({"role": "system", "content": _texts(system, "system")})
    for place, message in enumerate(messages):
        where, role, content = f"messages[{place}]", message.get("role"), message.get("content")
        if role == "user":
            made += _of_user(content, where)
        elif role == "assistant":
            made.append(_of_assistant(content, where))
        elif role == "system":
            made.append({"role": "system", "content": _texts(content, where)})
        else:
            raise refused(f"{where}.role is user, assistant or system")
    if made[-1]["role"] == "assistant":
        raise refused("messages: the last one is the assistant's, and going on with a message is not available")
    return made


def _texts(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    return "\n\n".join(_text(block, at) for block, at in _blocks(content, where))


def _blocks(content: Any, where: str) -> list[tuple[Mapping[str, Any], str]]:
    if not isinstance(content, list):
        raise refused(f"{where}.content is a text, or a list of blocks")
    blocks = [(block, f"{where}.content[{place}]") for place, block in enumerate(content)]
    for block, at in blocks:
        if not isinstance(block, Mapping) or not isinstance(block.get("type"), str):
            raise refused(f"{at} is a block, with a type")
    return blocks


def _text(block: Mapping[str, Any], where: str) -> str:
    if block["type"] != "text" or not isinstance(block.get("text"), str):
        raise refused(f"{where} is of type {block['type'][:40]}: a text is needed here")
    return str(block["text"])


def _of_user(content: Any, where: str) -> list[Message]:
    """Results of tools come first, each as a message of its own."""
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    results: list[Message] = []
    parts: list[Any] = []
    for block, at in _blocks(content, where):
        if block["type"] != "tool_result":
            parts.append(_part(block, at))
        elif not isinstance(block.get("tool_use_id"), str):
            raise refused(f"{at}.tool_use_id is a text")
        else:
            said = block.get("content", "")
            said = said if isinstance(said, str) else [_part(each, here) for each, here in _blocks(said, at)]
            results.append({"role": "tool", "tool_call_id": block["tool_use_id"], "content": said})
    return [*results, {"role": "user", "content": parts}] if parts or not results else results


def _part(block: Mapping[str, Any], where: str) -> Any:
    match block:
        case {"type": "text"}:
            return {"type": "text", "text": _text(block, where)}
        case {"type": "image", "source": {"type": "base64", "media_type": str(kind), "data": str(data)}}:
            return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}
        case {"type": "image", "source": {"type": "url", "url": str(url)}}:
            return {"type": "image_url", "image_url": {"url": url}}
    raise refused(f"{where} is of type {block['type'][:40]}, which is not available here")


def _of_assistant(content: Any, where: str) -> Message:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    texts: list[str] = []
    calls: list[Message] = []
    for block, at in _blocks(content, where):
        match block:
            case {"type": "tool_use", "id": str(id), "name": str(name), "input": dict(arguments)}:
                calls.append({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
            case {"type": "tool_use"}:
                raise refused(f"{at} is a tool_use with an id, a name and an input, an object")
            case {"type": kind} if kind in PASSED_OVER:
                continue
            case _:
                texts.append(_text(block, at))
    message: Message = {"role": "assistant"}
    if texts or not calls:
        message["content"] = "".join(texts)
    return {**message, "tool_calls": calls} if calls else message


def tools_of(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Functions, as chat completions have them. Raises InvalidInput for tools of other kinds."""
    return [_tool(tool, f"tools[{place}]") for place, tool in enumerate(tools)]


def _tool(tool: Any, where: str) -> dict[str, Any]:
    kind = tool.get("type") or "custom" if isinstance(tool, Mapping) else None
    if kind != "custom":
        words = f"{where} is of type {str(kind)[:40]}: there are tools of your own alone, nothing is run here"
        raise refused(words, "tools")
    if not isinstance(tool.get("name"), str) or not isinstance(tool.get("input_schema"), Mapping):
        raise refused(f"{where} is an object with a name and an input_schema", "tools")
    function = {"name": tool["name"], "parameters": tool["input_schema"]}
    function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": function}


def choice_of(choice: Mapping[str, Any] | None) -> tuple[pb.ToolChoice | None, bool]:
    """A choice of tools on the wire, None: the model's own; and whether there may be several calls."""
    single = bool(choice and choice.get("disable_parallel_tool_use", False))
    match choice:
        case None | {"type": "auto" | "none"}:
            return None, single
        case {"type": "any"}:
            return pb.ToolChoice(single=single), single
        case {"type": "tool", "name": str(name)}:
            return pb.ToolChoice(names=[name], single=True), True
    raise refused("tool_choice is not right: one of type auto, any, none, or tool with a name is needed", "tool_choice")
