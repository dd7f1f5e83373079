"""Settings that bound what one request may ask for."""

from dataclasses import dataclass

from container.settings.casts import (
    flag,
    fraction,
    hosts,
    integer,
    number,
    one_of,
    text,
)
from container.settings.field import setting

# The formats of container.text.tool_formats.
TOOL_CALL_PARSERS = (
    "hermes", "qwen_xml", "llama_json", "pythonic", "mistral", "mistral_json", "deepseek_v3",
    "deepseek_v31", "gemma",
)  # fmt: skip
# Formats that are chosen by their name only, and the names of vLLM and SGLang for all.
OTHER_TOOL_CALL_PARSERS = (
    "apertus", "apertus2509", "cohere_command3", "cohere_command4", "deepseekv3", "deepseekv31",
    "deepseek_v32", "deepseekv32", "deepseek_v4", "deepseekv4", "deepseek_v41", "deepseekv41",
    "dots", "ernie45", "firefunction", "functionary_v3.2", "functiongemma", "gemma4", "gigachat3",
    "gigachat35", "glm", "glm45", "glm47", "gpt-oss", "granite", "granite-20b-fc", "granite4",
    "hunyuan", "hunyuan_a13b", "hy_v3", "hy_v4", "inkling", "internlm", "interns1", "iquest_q1",
    "jamba", "k2_horizon", "kimi_k2", "kimi_k3", "lfm2", "ling3", "llama3", "llama3_json",
    "llama4_json", "llama4_pythonic", "longcat", "mimo", "minicpm5", "minimax-m2", "minimax-m3",
    "minimax_m1", "minimax_m2", "minimax_m3", "muse", "muse_glimmer", "musespark1x", "nanbeige",
    "nemotron", "olmo3", "openai", "phi4_mini_json", "plamo3", "poolside_v1", "qwen", "qwen25",
    "qwen3_coder", "qwen3_json", "qwen3_xml", "seed_oss", "spark25", "step3", "step3p5", "step5",
    "trinity", "xlam",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RequestSettings:
    """Limits and defaults of one request, and how prompts are built."""

    max_client_batch_size: int = setting(
        4, "MAX_CLIENT_BATCH_SIZE", cast=integer(1),
        meaning="Most prompts in one request.",
    )  # fmt: skip
    max_embedding_inputs: int = setting(
        2048, "MAX_EMBEDDING_INPUTS", cast=integer(1),
        meaning="Most texts in one embedding or rerank request.",
    )  # fmt: skip
    max_stop_sequences: int = setting(
        4, "MAX_STOP_SEQUENCES", cast=integer(0),
        meaning="Most stop strings in a request.",
    )  # fmt: skip
    max_stored_responses: int = setting(
        1000, "MAX_STORED_RESPONSES", cast=integer(0, 100_000),
        meaning="Responses of `/v1/responses` that are stored for `previous_response_id` and "
        "`GET`, in at most 64 MiB; the oldest are dropped first. 0: none.",
    )  # fmt: skip
    max_best_of: int = setting(
        2, "MAX_BEST_OF", cast=integer(1, 128),
        meaning="Largest `best_of` of a request.",
    )  # fmt: skip
    max_top_n_tokens: int = setting(
        5, "MAX_TOP_N_TOKENS", cast=integer(0, 100),
        meaning="Largest `top_n_tokens` of a request.",
    )  # fmt: skip
    watermark_gamma: float = setting(
        0.5, "WATERMARK_GAMMA", cast=fraction,
        meaning="Fraction of the vocabulary that a watermark favours.",
    )  # fmt: skip
    watermark_delta: float = setting(
        2.0, "WATERMARK_DELTA", cast=number,
        meaning="Number that a watermark adds to the logits of the favoured tokens.",
    )  # fmt: skip
    disable_grammar_support: bool = setting(
        False, "DISABLE_GRAMMAR_SUPPORT", cast=flag,
        meaning="Refuse `grammar` and `response_format`.",
    )  # fmt: skip
    grammar_timeout: int = setting(
        8, "GRAMMAR_TIMEOUT", cast=integer(1, 600),
        meaning="Most seconds for compiling a grammar, a response format or tools, and of "
        "processor time for its slow bitmasks; over it the request is refused.",
    )  # fmt: skip
    grammar_memory: int = setting(
        512, "GRAMMAR_MEMORY", cast=integer(64),
        meaning="Most MB that the process of one grammar may allocate; over it the request is "
        "refused.",
    )  # fmt: skip
    tool_call_parser: str | None = setting(
        None, "TOOL_CALL_PARSER", cast=one_of(*TOOL_CALL_PARSERS, *OTHER_TOOL_CALL_PARSERS),
        meaning=f"How the model writes tool calls: {', '.join(TOOL_CALL_PARSERS)}, or a name of "
        "vLLM or SGLang. Unset: as the chat template does, which the server learns from it.",
    )  # fmt: skip
    system_prompt: str | None = setting(
        None, "SYSTEM_PROMPT", cast=text,
        meaning="System message for chats that have none.",
    )  # fmt: skip
    allowed_image_domains: tuple[str, ...] = setting(
        (), "ALLOWED_IMAGE_DOMAINS", cast=hosts,
        meaning="Hosts from which images in messages may be fetched, separated by commas; "
        "`*.example.com` for all subdomains of one. Unset: data URLs only.",
    )  # fmt: skip
    max_image_fetch_size: int = setting(
        20_000_000, "MAX_IMAGE_FETCH_SIZE", cast=integer(1),
        meaning="Largest image file, in bytes, fetched or in a data URL (which PAYLOAD_LIMIT "
        "bounds, too).",
    )  # fmt: skip
    max_image_pixels: int = setting(
        2**24, "MAX_IMAGE_PIXELS", cast=integer(1, 2**28),
        meaning="Largest image, in pixels: its width times its height.",
    )  # fmt: skip
    max_images: int = setting(
        8, "MAX_IMAGES_PER_REQUEST", cast=integer(1, 1000),
        meaning="Most images in one request.",
    )  # fmt: skip
