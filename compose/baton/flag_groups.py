"""In which group `--help` shows a flag, and which of `baton up` everybody may need."""

from __future__ import annotations

_GROUPS = {
    "Model": """
        model tokenizer revision tokenizer_revision hf_overrides download_dir load_format dtype quantization model_impl device max_model_len seed served_model_name chat_template
        chat_template_content_format trust_request_chat_template tool_call_parser reasoning_parser
        generation_config override_generation_config deterministic
    """,
    "Clients": "host port api_key admin_api_key tenants data_dir allow_anonymous uds root_path allowed_origins allowed_methods allowed_headers",
    "Workers": """
        prefill decode path redis_url redis_password drain_s ask once worker_id announce_host control_port control_uds
        kv_port kv_transports worker policy also_prefill max_replays worker_wait_s stall_s lease_s default_prefill_rate
        interference_weight
    """,
    "Memory and speed": """
        gpu_memory_utilization kv_cache_memory_bytes num_gpu_blocks_override swap_space kv_store kv_store_size kv_store_dir
        kv_store_dir_size block_size max_num_seqs max_num_batched_tokens
        max_num_waiting enable_prefix_caching enable_chunked_prefill enforce_eager allow_reference_kernels max_prefill_chunk
        itl_target_ms
        tokenizer_threads
    """,
    "Keys": "cache_key curve_server_key curve_public_key curve_secret_key encrypt_kv",
    "Limits": """
        slow_client_s request_timeout_s head_timeout_s body_timeout_s keep_alive_s template_timeout_s stream_buffer_nbytes
        kv_overcommit max_queue_s ttft_target_ms
    """,
    "Logs": "log_level log_format log_requests enable_log_requests disable_log_requests disable_log_stats",
    "More": "",
    "Help": "config_file help_all help",
}
GROUPS = tuple(_GROUPS)
"""In the order in which help shows them."""
_GROUP_OF = {name: group for group, names in _GROUPS.items() for name in names.split()}

_COMMON = """
    model_tag model prefill decode host port api_key served_model_name tokenizer chat_template dtype device max_model_len
    max_num_seqs max_num_batched_tokens gpu_memory_utilization kv_cache_memory_bytes swap_space kv_store_size
    enable_prefix_caching ask once
    config_file help_all help
"""
COMMON = frozenset(_COMMON.split())
"""What `baton up --help` shows."""
_ORDER = list(_GROUP_OF)


def place_of(name: str) -> int:
    """Return where within its group a flag stands; those that are not named here come last."""
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)


def group_of(name: str) -> str:
    """Return the heading under which a flag stands."""
    prefixes = {"ssl_": "Clients", "allow": "Clients", "max_": "Limits"}
    near = next((group for prefix, group in prefixes.items() if name.startswith(prefix)), "More")
    return _GROUP_OF.get(name, near)
