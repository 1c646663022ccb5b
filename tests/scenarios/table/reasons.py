"""Why our answers differ from llama-server's, where many do in the same way."""

NULL_LOGPROBS = "OpenAI sends null where none were asked for"
REFUSAL = "OpenAI's field, always null here"
TIMINGS = "llama-server's own; ours are in /metrics"
TOKEN_IDS = "llama-server's own; OpenAI has no such field"
NULL_USAGE = "with include_usage OpenAI sends null in all chunks but the last"
FIRST_CONTENT = "OpenAI's first delta has an empty text, llama-server's null"
ERROR_CODE = "OpenAI's codes are names, llama-server repeats the status"
ERROR_PARAM = "OpenAI names the field at fault"

CHAT = {"+choices[].logprobs": NULL_LOGPROBS, "+choices[].message.refusal": REFUSAL, "-timings": TIMINGS}
CHAT_TOP_LOGPROBS = {
    "-choices[].logprobs.content[].id": TOKEN_IDS,
    "+choices[].logprobs.refusal": REFUSAL,
    "+choices[].message.refusal": REFUSAL,
    "-timings": TIMINGS,
}
CHAT_LOGPROBS = CHAT_TOP_LOGPROBS | {
    "choices[].logprobs.content[].top_logprobs[]: None != object": "0 alternatives are none; llama-server gives one",
}
CHAT_STREAM = {
    "+role.choices[].logprobs": NULL_LOGPROBS,
    "role.choices[].delta.content: string != null": FIRST_CONTENT,
    "+text.choices[].logprobs": NULL_LOGPROBS,
    "+finish.choices[].logprobs": NULL_LOGPROBS,
    "-finish.timings": TIMINGS,
}
CHAT_STREAM_LOGPROBS = {
    "+role.choices[].logprobs": NULL_LOGPROBS,
    "role.choices[].delta.content: string != null": FIRST_CONTENT,
    "-text.choices[].logprobs.content[].id": TOKEN_IDS,
    "+text.choices[].logprobs.refusal": REFUSAL,
    "+finish.choices[].logprobs": NULL_LOGPROBS,
    "-finish.timings": TIMINGS,
}
CHAT_STREAM_USAGE = {reason: why for reason, why in CHAT_STREAM.items() if reason != "-finish.timings"} | {
    "+role.usage": NULL_USAGE,
    "+text.usage": NULL_USAGE,
    "+finish.usage": NULL_USAGE,
    "-usage.timings": TIMINGS,
}
NO_TEXT = "OpenAI says null where there is no text"
CALLS = CHAT | {"choices[].message.content: null != string": NO_TEXT}
CALLS_STREAM = {
    "+role.choices[].logprobs": NULL_LOGPROBS,
    "role.choices[].delta.content: string != null": FIRST_CONTENT,
    "+call.choices[].logprobs": NULL_LOGPROBS,
    "+arguments.choices[].logprobs": NULL_LOGPROBS,
    "+finish.choices[].logprobs": NULL_LOGPROBS,
    "-finish.timings": TIMINGS,
}
CALLS_STREAM_USAGE = {reason: why for reason, why in CALLS_STREAM.items() if reason != "-finish.timings"} | {
    "+role.usage": NULL_USAGE,
    "+call.usage": NULL_USAGE,
    "+arguments.usage": NULL_USAGE,
    "+finish.usage": NULL_USAGE,
    "-usage.timings": TIMINGS,
}
TEXT = {"-timings": TIMINGS}
TEXT_STREAM = {
    "-finish.timings": TIMINGS,
    "-finish.usage": "nobody asked for it: OpenAI sends usage with include_usage only",
}
TEXT_STREAM_USAGE = {
    "-finish.timings": TIMINGS,
    "+text.usage": NULL_USAGE,
    "finish.usage: null != object": "OpenAI's usage comes in a chunk of its own",
    "+usage": "OpenAI's usage comes in a chunk of its own",
    "order: [text finish usage done] != [text finish done]": "OpenAI's usage comes in a chunk of its own",
}
ERROR = {"error.code: string != number": ERROR_CODE, "+error.param": ERROR_PARAM}


def client_fault(ours, theirs):
    """llama-server blames itself (or its path) for what the client did wrong."""
    types = {500: "server_error", 404: "not_found_error"}
    reason = f"the client's fault: {ours} says so, {theirs} does not"
    found = {f'error.type: ="invalid_request_error" != ="{types[theirs]}"': reason}
    return ERROR | found | ({f"status: {ours} != {theirs}": reason} if ours != theirs else {})


def refused(reason, status=400):
    """What llama-server answers and we refuse."""
    return {f"status: {status} != 200": reason}
