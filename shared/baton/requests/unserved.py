"""What other servers know of a request and we do not do, by where it stands: why, and which values ask for nothing."""

from __future__ import annotations

from baton.requests.closed import Unserved

_EMPTY: tuple[object, ...] = ([], {}, "")
_OFF = (False,)
_NO_MEDIA = "only text is served"
_NO_KV = "where KV comes from is not the client's to say"
_IN_TEMPLATE = "what a chat template reads is sent in chat_template_kwargs"

ANY_REQUEST = {
    "structural_tag": Unserved("it stands in response_format or structured_outputs"),
    "prompt_embeds": Unserved("prompts are text or token ids", _EMPTY),
    "return_token_offsets": Unserved("offsets are given with logprobs of completions only", _OFF),
    "routed_experts_prompt_start": Unserved("which experts ran is not told", (0,)),
    "stream_interval": Unserved("each token is sent when it is there", (1,)),
    "mm_payload": Unserved(_NO_MEDIA, ("tensors", "none")),
    "return_weight_versions": Unserved("weights do not change while they are served", _OFF),
    "watermarking": Unserved("answers carry no watermark", _OFF),
    "kv_transfer_params": Unserved(_NO_KV, _EMPTY),
    "ec_transfer_params": Unserved(_NO_KV, _EMPTY),
    "extra_body": Unserved("its fields stand in the body itself", _EMPTY),
    "moderation": Unserved("nothing is moderated here"),
}

CHAT = ANY_REQUEST | {
    "audio": Unserved("audio is not served; only text is"),
    "prediction": Unserved("predicted outputs are not served"),
    "web_search_options": Unserved("web search is not served"),
    "functions": Unserved("it is deprecated; use tools", _EMPTY),
    "function_call": Unserved("it is deprecated; use tool_choice", ("none", "auto")),
    "verbosity": Unserved("no model served here knows it", ("medium",)),
    "best_of": Unserved("only as many answers are made as are given; use n", (1,)),
    "media_io_kwargs": Unserved(_NO_MEDIA, _EMPTY),
    "mm_processor_kwargs": Unserved(_NO_MEDIA, _EMPTY),
    "return_prompt_text": Unserved("use /tokenize and /detokenize, or return_token_ids", _OFF),
    "enable_thinking": Unserved(_IN_TEMPLATE),
    "thinking": Unserved(_IN_TEMPLATE),
    "prompt": Unserved("a conversation is sent in messages; a prompt to /v1/completions"),
}

COMPLETION = ANY_REQUEST | {
    "messages": Unserved("a conversation is sent to /v1/chat/completions"),
    "thinking_token_budget": Unserved("thoughts are told apart in conversations only; use chat, or max_tokens", (-1,)),
}

POOLING = {
    "stream": Unserved("there is nothing to stream: the answer comes whole", _OFF),
    "mm_processor_kwargs": CHAT["mm_processor_kwargs"],
    "media_io_kwargs": CHAT["media_io_kwargs"],
    "padding": Unserved("prompts are not padded", ("do_not_pad",)),
    "embed_dtype": Unserved("vectors are given in 32 bits", ("float32",)),
    "endianness": Unserved("base64 is of little-endian numbers", ("native", "little")),
    "softmax": Unserved("it is called use_activation"),
    "activation": Unserved("it is called use_activation"),
    "instruction": Unserved("instructions are written in the texts themselves"),
    "max_tokens_per_doc": Unserved("documents are cut with truncate_prompt_tokens"),
    "max_chunks_per_doc": Unserved("documents are not cut to pieces"),
    "rank_fields": Unserved("documents are texts"),
    "queries": Unserved("the first texts stand in text_1", _EMPTY),
}
BATCH = {"output_expires_after": Unserved("files stay until they are deleted")}

TOKENIZE = {"mm_processor_kwargs": CHAT["mm_processor_kwargs"], "media_io_kwargs": CHAT["media_io_kwargs"]}

_NO_PICTURES = Unserved("pictures are not served yet; only text is")
_NO_AUDIO = Unserved("audio is not served yet; only text is")
_NO_VIDEO = Unserved("videos are not served yet; only text is")
_NO_FILES = Unserved("files are not served yet; send their text")

PART = {
    **dict.fromkeys(("image_url", "input_image", "image", "image_pil", "image_embeds"), _NO_PICTURES),
    **dict.fromkeys(("input_audio", "audio_url", "audio_embeds"), _NO_AUDIO),
    **dict.fromkeys(("video_url", "input_video", "video"), _NO_VIDEO),
    **dict.fromkeys(("file", "input_file"), _NO_FILES),
    "prompt_embeds": Unserved("prompts are text or token ids"),
    **dict.fromkeys(("thinking", "redacted_thinking"), Unserved("reasoning stands in the message's reasoning_content")),
    **dict.fromkeys(
        ("tool_use", "tool_result", "tool_reference"),
        Unserved("calls stand in tool_calls, and their results in messages of the role tool"),
    ),
}
"""Types of parts, and the keys under which their content stands, which are mostly the same words."""

_CONTINUE = Unserved("an answer that has begun is continued with continue_final_message", _OFF)

MESSAGE = {
    "audio": _NO_AUDIO,
    "images": Unserved(_NO_PICTURES.reason, _EMPTY),
    "function_call": Unserved("it is deprecated; use tool_calls"),
    "tools": Unserved("tools are the request's, not a message's", _EMPTY),
    "prefix": _CONTINUE,
    "partial": _CONTINUE,
}

FUNCTION = {"defer_loading": Unserved("all tools are shown to the model", _OFF)}
TOOL = FUNCTION | {
    "custom": Unserved("only functions are served as tools"),
    "strict": Unserved("it stands in the function", _OFF),
}
CALL = {"custom": Unserved("only calls of functions are served")}

SENT_BACK = frozenset(
    ["cache_control", "prompt_cache_breakpoint", "provider_specific_fields", "provider_options", "extra_content"]
)
"""Keys that clients put beside those of messages, parts, tools and calls, for others than the model."""
