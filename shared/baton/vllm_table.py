"""What vLLM's users write, name by name, as data: `vllm_names` reads it. Names of vLLM 0.33 and, after them, of older ones.

Each group says one thing about its names, which are written so:

    name          only an empty value (none, "", [], {}, 0 of what counts nothing) changes nothing; every other is refused
    name=a|b      these values change nothing either: what vLLM does by default, and what Baton does anyway
    name~         no value changes anything here: taken, with a notice
    name>other    taken as Baton's own `other`
    name?         a switch: on the command line no value follows, and off changes nothing
    name[]        on the command line several values may follow
"""

from __future__ import annotations

TAKEN = """
model tokenizer revision tokenizer_revision hf_overrides load_format dtype quantization model_impl seed max_model_len block_size gpu_memory_utilization kv_cache_memory_bytes
num_gpu_blocks_override max_num_batched_tokens max_num_seqs enable_prefix_caching enable_chunked_prefill enforce_eager
swap_space kv_offloading_size>swap_space
device served_model_name host port api_key config chat_template chat_template_content_format
trust_request_chat_template tool_call_parser reasoning_parser uds root_path ssl_keyfile
ssl_certfile ssl_ca_certs ssl_cert_reqs allow_credentials allowed_origins allowed_methods allowed_headers
generation_config override_generation_config
runner convert
max_num_queued_reqs>max_num_waiting shutdown_timeout>drain_s
disable_log_stats enable_log_requests log_level download_dir enable_tokenizer_info_endpoint max_logprobs
"""
"""Flags of `baton up`, under vLLM's names or as `name>ours`."""

ARGUMENTS = """
model tokenizer revision tokenizer_revision hf_overrides load_format dtype quantization model_impl seed max_model_len block_size gpu_memory_utilization kv_cache_memory_bytes
num_gpu_blocks_override max_num_batched_tokens max_num_seqs enable_prefix_caching enable_chunked_prefill enforce_eager
swap_space kv_offloading_size>swap_space
device skip_tokenizer_init chat_template generation_config override_generation_config
runner convert max_num_queued_reqs>max_num_waiting max_logprobs logits_processors use_tqdm_on_load?>use_tqdm
"""
"""What `LLM(...)` takes, where that differs from the groups below; names of the server are refused there."""

OFFLINE = (
    ("One model answers here, and nobody has to name it.", "served_model_name~"),
    (
        "`LLM` gives an answer's text as the model wrote it, thoughts and calls included.",
        "reasoning_parser~ tool_call_parser~",
    ),
    ("`LLM` writes no log.", "disable_log_stats?~ enable_log_requests?~ log_level~"),
    ("Set HF_HOME in the environment before Python starts: models are kept below it.", "download_dir"),
)
"""Of `LLM(...)`, names that are the server's otherwise and change nothing."""

SERVING = (
    (
        "One worker runs on one GPU: a model is not spread over several yet. `--decode N` serves a copy on each.",
        """
        tensor_parallel_size=1 pipeline_parallel_size=1 prefill_context_parallel_size=1 decode_context_parallel_size=1
        dcp_comm_backend dcp_q_replicate? dcp_kv_cache_interleave_size=1 cp_kv_cache_interleave_size=1 enable_hc_sp?
        enable_batch_sharded_sampling? nnodes=1 node_rank=0 master_addr~ master_port~ distributed_timeout_seconds~
        cpu_distributed_timeout_seconds~ distributed_executor_backend=mp|uni headless? enable_dbo? ubatch_size=0
        dbo_decode_token_threshold~ dbo_prefill_token_threshold~ disable_custom_all_reduce?~
        enable_nccl_comm_suspend? ray_workers_use_nsight? worker_use_ray? engine_use_ray? max_parallel_loading_workers~
        """,
    ),
    (
        "Copies of a model are workers here, behind one router: give `--decode N` (and `--prefill N`).",
        """
        data_parallel_size=1 data_parallel_rank data_parallel_start_rank data_parallel_size_local data_parallel_address
        data_parallel_rpc_port data_parallel_hybrid_lb? data_parallel_external_lb? data_parallel_multi_port_external_lb?
        data_parallel_backend=mp data_parallel_supervisor_port~ dp_supervisor_probe_interval_s~
        dp_supervisor_probe_timeout_s~ dp_supervisor_probe_failure_threshold~ dp_sync_interval~
        disable_nccl_for_dp_synchronization?~ api_server_count=1 enable_scale_out? disable_frontend_multiprocessing?~
        """,
    ),
    (
        "Prefill and decode workers find one another by themselves: give `baton up --prefill N --decode N`.",
        "kv_transfer_config kv_events_config ec_transfer_config ec_manager_config engine_id",
    ),
    (
        "The experts of a mixture are not spread over GPUs yet, and their products have no choice of kernels.",
        """
        enable_expert_parallel? enable_ep_weight_filter? all2all_backend~ enable_elastic_ep? elastic_ep_max_dp_size
        eplb_config enable_eplb? expert_placement_strategy=linear moe_backend~ enable_return_routed_experts?
        num_redundant_experts=0 eplb_window_size eplb_step_interval eplb_log_balancedness?
        """,
    ),
    (
        "State-space layers are not served.",
        """
        mamba_config mamba_cache_dtype=auto mamba_ssm_cache_dtype=auto mamba_block_size mamba_cache_mode mamba_backend~
        mamba_ssu_algorithm enable_mamba_shared_prefix_checkpoint? enable_mamba_cache_stochastic_rounding?
        mamba_cache_philox_rounds=0 replayssm_buffer_len~ use_replayssm? gdn_prefill_backend~ kda_prefill_backend~
        kda_decode_backend~ engram_config
        """,
    ),
    (
        "Quantized KV is not served yet; of weights the method alone is given, by `--quantization` or the checkpoint.",
        """
        quantization_config allow_deprecated_quantization? kv_cache_dtype=auto|bfloat16|float16
        kv_cache_dtype_skip_layers[] calculate_kv_scales? quantization_param_path qlora_adapter_name_or_path
        """,
    ),
    (
        "LoRA adapters are not served yet: merge the adapter into its model (peft's merge_and_unload).",
        """
        enable_lora? lora_modules[] max_loras=1 max_lora_rank=16 default_mm_loras fully_sharded_loras? max_cpu_loras
        lora_dtype=auto lora_target_modules[] enable_tower_connector_lora? specialize_active_lora?
        enable_mixed_moe_lora_format? enable_moe_shared_loras? max_lora_cls_labels enable_lora_bias?
        lora_extra_vocab_size~ long_lora_scaling_factors enable_prompt_adapter? max_prompt_adapters~
        max_prompt_adapter_token~ prompt_adapters[]
        """,
    ),
    (
        "Speculative decoding is not served yet: leave it out, answers are the same without it.",
        """
        speculative_config spec_method spec_model spec_tokens speculative_model num_speculative_tokens
        speculative_model_quantization speculative_draft_tensor_parallel_size speculative_max_model_len
        speculative_disable_by_batch_size speculative_disable_mqa_scorer? ngram_prompt_lookup_max ngram_prompt_lookup_min
        spec_decoding_acceptance_method=rejection_sampler typical_acceptance_sampler_posterior_threshold
        typical_acceptance_sampler_posterior_alpha disable_logprobs_during_spec_decoding? num_lookahead_slots~
        per_request_spec_decode_metrics=none diffusion_config
        """,
    ),
    (
        "One library makes every grammar; a request's `structured_outputs` has the options.",
        """
        guided_decoding_backend~ guided_decoding_disable_fallback?~ structured_outputs_config logits_processor_pattern
        guided_decoding_disable_any_whitespace? guided_decoding_disable_additional_properties?
        """,
    ),
    (
        "Tools are on by themselves (`--tool-call-parser`); parsers of others come as installed packages.",
        """
        enable_auto_tool_choice?~ tool_parser_plugin tool_strict_level tool_server
        exclude_tools_when_tool_choice_none?
        """,
    ),
    (
        "Thoughts are told apart by themselves (`--reasoning-parser`); parsers of others come as installed packages.",
        "reasoning_parser_plugin reasoning_config reasoning_effort_map enable_reasoning?~",
    ),
    (
        "How a model pools is read from its files; `--runner` and `--convert` say what it is for.",
        "task=auto|generate pooler_config override_pooler_config io_processor_plugin",
    ),
    (
        "Pictures, sound and video are not served yet: Baton reads text.",
        """
        limit_mm_per_prompt={"image":0}|{"video":0}|{"audio":0}|{"image":0,"video":0}|{"image":0,"video":0,"audio":0}
        enable_mm_embeds? interleave_mm_strings? media_io_kwargs mm_processor_kwargs mm_encoder_only?
        mm_encoder_tp_mode=weights mm_encoder_attn_backend mm_encoder_attn_dtype mm_encoder_fp8_scale_path
        mm_encoder_fp8_scale_save_path mm_encoder_fp8_scale_save_margin=1.5 video_pruning_rate video_pruning_method=evs
        enable_multimodal_encoder_data_parallel? allowed_local_media_path allowed_media_domains[]
        trust_request_mm_kwargs? enable_prompt_embeds?
        language_model_only?~ mm_processor_cache_gb~ mm_processor_cache_type~ mm_hasher_algorithm~
        mm_shm_cache_max_object_size_mb~ skip_mm_profiling?~ mm_tensor_ipc~ mm_processor_device~ mm_ipc_gpu_memory_gb~
        mm_device_do_normalize?~ disable_mm_preprocessor_cache?~ disable_chunked_mm_input?~ enable_mm_processor_stats?~
        """,
    ),
    (
        "Weights stay in the GPU's memory: give a smaller model or a larger GPU. KV may wait in host memory: `--swap-space`.",
        """
        cpu_offload_gb=0 cpu_offload_params[] offload_backend~ offload_group_size=0 offload_num_in_group~
        offload_prefetch_step~ offload_params[] kv_offloading_backend=native
        """,
    ),
    (
        "POST /sleep is there by itself, with an admin's key, and leaves weights where they are.",
        """
        enable_sleep_mode?~ sleep_mode_backend~ sleep_mode_offload_cudagraph?~ sleep_preserve_parameter_names[]
        enable_cumem_allocator? weight_transfer_config
        """,
    ),
    ("`--swap-space` decides: with it, what a request had computed waits in host memory.", "preemption_mode~"),
    (
        "A checkpoint's code is never run: a family that Baton serves needs none, and any other is refused by name.",
        "trust_remote_code?~ code_revision~",
    ),
    (
        "No code of yours is loaded into the server, but that of installed packages which say what it is.",
        """
        worker_cls=auto worker_extension_cls scheduler_cls middleware[] model_class_overrides
        additional_config
        """,
    ),
    ("Install it with an entry point in baton.logits_processors; requests name it.", "logits_processors[]"),
    (
        "config.json of the model's folder counts, and `--hf-overrides` puts values over it.",
        """
        hf_config_path rope_scaling rope_theta config_format=auto|hf model_weights
        disable_sliding_window? prefix_match_unit override_neuron_config
        """,
    ),
    (
        "The folder's tokenizer.json counts, else its tekken.json or tokenizer.model; `--tokenizer` names another.",
        "tokenizer_mode=auto|fast|hf tokenizer_pool_size~ tokenizer_pool_type~ tokenizer_pool_extra_config~",
    ),
    (
        "A server needs its tokenizer; `LLM(skip_tokenizer_init=True)` works without.",
        "skip_tokenizer_init? tokens_only?",
    ),
    ("Set HF_TOKEN in the environment.", "hf_token"),
    (
        "Weights are read from safetensors in Baton's own way.",
        """
        safetensors_load_strategy~ safetensors_prefetch_num_threads~ safetensors_prefetch_block_size~ ignore_patterns[]~
        pt_load_map_location~ use_tqdm_on_load?~ model_loader_extra_config
        """,
    ),
    (
        "Kernels, CUDA graphs and the planning of steps are Baton's own, with nothing of the kind to choose.",
        """
        compilation_config~ optimization_level~ performance_mode~ cudagraph_capture_sizes[]~ max_cudagraph_capture_size~
        attention_config~ attention_backend~ linear_backend~ sparse_indexer_topk_backend~ kernel_config~
        ir_op_priority~ enable_flashinfer_autotune?~ monokernel?~ disable_cascade_attn?~ enable_shm_tensor_arena?~
        async_scheduling?~ scheduler_reserve_full_isl?~ prefill_schedule_interval~ watermark~
        disable_hybrid_kv_cache_manager?~ prefix_caching_hash_algo~ prefix_cache_retention_interval~
        kv_sharing_fast_prefill?~ swa_bounded_replay?~ long_prefill_token_threshold_adaptive?~ renderer_num_workers~
        use_v2_block_manager?~ num_scheduler_steps~ multi_step_stream_outputs?~ scheduler_delay_factor~
        disable_async_output_proc?~ max_seq_len_to_capture~ max_context_len_to_capture~ cuda_graph_sizes[]~
        max_num_partial_prefills~ max_long_partial_prefills~ jit_monitor_mode~ jit_monitor_verbose?~ use_fp64_gumbel?~
        fail_on_environ_validation?~
        """,
    ),
    (
        "A request's `priority` orders it always; without one, first come is first served.",
        "scheduling_policy=fcfs|priority",
    ),
    ("Give --max-num-batched-tokens: it counts all tokens of a step.", "max_num_scheduled_tokens"),
    ("`baton prefill` and `baton decode` have --max-prefill-chunk.", "long_prefill_token_threshold=0"),
    ("`baton router` has --max-queued-tokens.", "max_num_queued_tokens"),
    ("Give --max-num-seqs.", "max_num_active_seqs"),
    ("Start the command under `numactl`.", "numa_bind? numa_bind_nodes[] numa_bind_cpus[]"),
    ("Set CUDA_VISIBLE_DEVICES in the environment.", "device_ids[]"),
    ("Log-probabilities are of the model's raw distribution.", "logprobs_mode=raw_logprobs"),
    ("Every token is sent when it comes.", "stream_interval=1"),
    (
        "Requests on a lost worker are always begun again elsewhere.",
        "enable_fault_tolerance?~ fault_tolerance_config~ watchdog_config~",
    ),
    (
        "A running service is measured by /metrics, `baton top` and `baton bench`; nothing else is measured.",
        """
        aggregate_engine_logging?~ enable_metrics?~ show_hidden_metrics_for_version~
        enable_prompt_tokens_details?~ enable_server_load_tracking?~
        metrics_port otlp_traces_endpoint collect_detailed_traces[] kv_cache_metrics? kv_cache_metrics_sample=0.01
        custom_histogram_buckets cudagraph_metrics? enable_layerwise_nvtx_tracing? enable_mfu_metrics?
        enable_logging_iteration_details? enable_per_request_metrics? profiler_config aux_output_config
        return_sampling_mask? enable_trace_replay? watermark_config
        """,
    ),
    (
        "Logs are lines of facts to standard error, and never hold what users write.",
        """
        disable_log_requests?~ enable_log_outputs? enable_log_deltas?~ max_log_len~
        uvicorn_log_level~ disable_uvicorn_access_log?~ disable_access_log_for_endpoints~
        log_error_stack?~ logging_config log_config_file
        """,
    ),
    (
        "Requests say this themselves (`chat_template_kwargs`, `stream_options`).",
        "default_chat_template_kwargs enable_force_include_usage? return_tokens_as_token_ids?",
    ),
    ("Answers have the role `assistant`.", "response_role=assistant"),
    ("`baton router` has --keep-alive-s.", "sse_keep_alive_interval=0"),
    ("x-request-id is always sent.", "enable_request_id_headers?~"),
    ("There are no pages of FastAPI here; /openapi.json is served.", "disable_fastapi_docs?~ enable_offline_docs?"),
    ("`baton router` has --max-header-nbytes.", "h11_max_incomplete_event_size h11_max_header_count"),
    (
        "The API is OpenAI's over HTTP/1.1; put a proxy before it for anything else.",
        """
        grpc? grpc_port enable_ssl_refresh? ssl_ciphers
        fingerprint_mode~ fingerprint_value cohere_is_reasoning_model?~ cohere_format~
        anthropic_disabled_thinking_effort~ enable_flash_late_interaction?~
        """,
    ),
)
"""(what is said, names) of flags and, where the name is not the server's alone, of `LLM(...)`."""

SAMPLING_TAKEN = """
n best_of temperature top_p top_k min_p seed max_tokens min_tokens stop stop_token_ids include_stop_str_in_output
ignore_eos presence_penalty frequency_penalty repetition_penalty logit_bias logprobs prompt_logprobs allowed_token_ids
bad_words skip_special_tokens spaces_between_special_tokens detokenize structured_outputs logprob_token_ids
repetition_detection guided_decoding>structured_outputs logits_processors extra_args
"""

SAMPLING = (
    ("Beams are searched by `LLM.beam_search`.", "use_beam_search? length_penalty=1 early_stopping?"),
    ("One library makes every grammar.", "guided_decoding_backend~"),
    (
        "Write structured_outputs=StructuredOutputsParams(json=...), or regex, choice, grammar.",
        "guided_json guided_regex guided_choice guided_grammar guided_whitespace_pattern response_format",
    ),
    ("`LLM` cuts no prompt: cut it yourself, or raise max_model_len.", "truncate_prompt_tokens"),
    ("`logprobs=K` gives the K likeliest at every position.", "prompt_logprob_token_ids prompt_logprob_start=0"),
    ("Logprobs are a dict for each position.", "flat_logprobs?"),
    ("Send a `cache_salt` of its own: nothing cached is found under it.", "skip_reading_prefix_cache?"),
    ("Write thinking=Thinking(budget=...), of baton.thinking, with the model's marks.", "thinking_token_budget"),
    ("Answers are not watermarked.", "watermarking?"),
    ("Which experts a token went through is not told.", "routed_experts_prompt_start=0"),
    ("Traces are not replayed.", "trace_decode_token_ids"),
    ("`LLM` gives whole answers.", "output_kind~ stream_interval~ skip_clone?~ output_text_buffer_length~"),
)

STRUCTURED = (
    ("One library makes every grammar.", "disable_fallback?~ backend~ backend_was_auto?~"),
    ("Write json, choice, regex or grammar.", "object"),
)
"""Of `StructuredOutputsParams(...)`."""

CALLS = (
    ("Adapters are not served yet: merge it into the weights.", "lora_request prompt_adapter_request"),
    ("Only text is served yet.", "mm_processor_kwargs"),
    ("Prompts are text, or {'prompt_token_ids': [...]}, and stand in `prompts`.", "prompt_token_ids"),
    ("Give SamplingParams(structured_outputs=...).", "guided_options_request guided_options"),
    (
        "Text is encoded as the tokenizer's files say. Encode it yourself, and send prompt_token_ids.",
        "tokenization_kwargs",
    ),
)
"""Of `LLM.generate` and `LLM.chat`."""

METHODS = (
    ("Rewards are classes here: use classify.", "reward"),
    (
        "Blocks are found by what they hold, so none is ever stale; a `cache_salt` of its own finds none of them.",
        "reset_prefix_cache reset_mm_cache",
    ),
    ("Measure with `baton bench`; a running server has /metrics.", "get_metrics start_profile stop_profile"),
    ("A model is not put to sleep: delete the object.", "sleep wake_up release_kv_cache_memory"),
    ("No code of yours is run in the engine.", "collective_rpc apply_model"),
    ("`generate` and `chat` take many prompts at once.", "enqueue enqueue_chat wait_for_completion"),
    (
        "The engine's settings are `llm.config`.",
        "llm_engine model_config get_world_size set_tokenizer from_engine_args",
    ),
)

IMPORTS = (
    (
        "One class stands for all: PoolingRequestOutput, and PoolingOutput in it.",
        "EmbeddingOutput EmbeddingRequestOutput ClassificationOutput ClassificationRequestOutput ScoringOutput ScoringRequestOutput",
    ),
    ("`LLM(...)` takes the settings itself.", "EngineArgs AsyncEngineArgs"),
    ("Use `LLM`, or run `baton serve` and ask it over HTTP.", "LLMEngine AsyncLLMEngine AsyncLLM"),
    ("LoRA adapters are not served yet: merge the adapter into its model.", "LoRARequest"),
    ("No code of yours is loaded; a new family is a file in baton/models.", "ModelRegistry"),
    ("A worker is a process of its own: `baton serve` starts them.", "initialize_ray_cluster"),
    ("It is a string, or {'prompt_token_ids': [...]}.", "PromptType"),
)
"""What is imported from `vllm` and not from `batonllm`."""

ROUTES = (
    ("Scores of given tokens are in logprobs of completions.", "/generative_scoring"),
    ("Send /v1/embeddings.", "/v2/embed"),
    ("Models are not moderated or trained here.", "/v1/moderations /v1/fine_tuning"),
    ("Send /v1/chat/completions.", "/v1/realtime /cohere /v1/assistants"),
    ("Send the requests one by one, as many at once as you like, or a file of them.", "/v1/chat/completions/batch"),
    ("Only text is served yet.", "/v1/audio /v1/images"),
    ("Adapters are not served yet: merge it into the weights.", "/v1/load_lora_adapter /v1/unload_lora_adapter"),
    (
        "GET /health says whether the process is alive, GET /ready whether requests are served.",
        "/readyz /livez /healthz",
    ),
    ("GET /load, GET /metrics and GET /debug/workers say how busy it is.", "/get_world_size"),
    ("GET /docs names every route, GET /openapi.json describes it.", "/redoc"),
    (
        "Only text is served yet. POST /reset_prefix_cache forgets cached prefixes.",
        "/reset_mm_cache /reset_encoder_cache",
    ),
    (
        "POST /sleep?level=0 does so, POST /wake_up ends it; level=1 gives back the memory of KV.",
        "/pause /resume /is_paused /release_kv_cache_memory",
    ),
    (
        "A served model's weights are not changed: end it, and start another.",
        "/update_weights /init_weight_transfer_engine",
    ),
    ("Measure with `baton bench serve`.", "/start_profile /stop_profile"),
    ("No code of yours is run in a server.", "/collective_rpc"),
    ("Ask for completions with token ids, and POST /abort_requests with an x-request-id.", "/inference/v1"),
    ("Count them with POST /tokenize.", "/v1/messages/count_tokens"),
    ("Start the router with --enable-tokenizer-info-endpoint.", "/tokenizer_info"),
    ("POST /tokenize shows the prompt of a chat as tokens.", "/v1/chat/completions/render /v1/completions/render"),
)
"""Paths of vLLM's server, and of OpenAI's, that are not here; what lies below one too."""

BENCH_TAKEN = """
model base_url num_prompts request_rate max_concurrency seed save_result save_detailed result_dir result_filename
input_len output_len random_input_len>input_len random_output_len>output_len label disable_tqdm?~
prefix_repetition_num_prefixes>prefixes prefix_repetition_prefix_len>prefix_len
prefix_repetition_suffix_len>input_len prefix_repetition_output_len>output_len
"""
"""Flags of `baton bench serve`."""

BENCH = (
    (
        "Completions are asked for by token ids that are drawn, or by those of a `--trace`.",
        """
        backend=openai|vllm|openai-completions endpoint=/v1/completions dataset_name=random dataset_path custom_output_len
        hf_name hf_split hf_subset hf_output_len sharegpt_output_len random_range_ratio=0 random_prefix_len=0
        random_batch_size=1 lora_modules[] no_stream? skip_chat_template?~ use_beam_search?
        """,
    ),
    ("Give --url http://HOST:PORT.", "host=127.0.0.1|localhost port=8000"),
    ("No tokenizer is needed for token ids.", "tokenizer~ tokenizer_mode~ trust_remote_code?~ skip_tokenizer_init?~"),
    (
        "Every answer has the length asked for, its likeliest tokens.",
        """
        ignore_eos?~ temperature=0 top_p=1 top_k=-1|0|1 min_p=0 frequency_penalty=0 presence_penalty=0 repetition_penalty=1
        logprobs extra_body
        """,
    ),
    (
        "Mean, median, 99th and 99.9th percentile of TTFT, TPOT, ITL and E2EL are always given.",
        "percentile_metrics~ metric_percentiles=90|99|99.9 plot_timeline? plot_dataset_stats? metadata[]",
    ),
    ("Give --ttft-target-ms and --itl-target-ms.", "goodput[]"),
    (
        "Arrivals are Poisson's, and several --rate make a sweep.",
        "burstiness=1 ramp_up_strategy ramp_up_start_rps ramp_up_end_rps",
    ),
    ("--warm-up-s sends for a while what is not counted.", "num_warmups=0 ready_check_timeout_sec~ profile?"),
    ("Names of requests are drawn.", "request_id_prefix~ served_model_name~ append_result? header[] insecure?"),
)
"""Flags of `vllm bench serve`."""

BENCH_COMMANDS = {
    "throughput": "`baton bench offline` measures a crowd of requests.",
    "latency": "`baton bench offline` measures one stream too.",
    "startup": "`baton up` says after how many seconds it is ready.",
    "sweep": "`baton bench serve --rate 1 2 4` takes several rates.",
    "mm-processor": "Only text is served yet.",
}
"""Sub-commands of `vllm bench` that have no twin."""

COMMANDS = {
    "collect-env": "`baton version --verbose` says what an issue needs, `baton doctor` what the machine can do.",
    "launch": "`baton router`, `baton prefill` and `baton decode` run one service each.",
    "snapshot": "Nothing of the kind is kept.",
    "download-kernels": "Kernels are compiled on this machine at the first start.",
    "api_server": "`baton serve MODEL` is the server.",
}
"""Sub-commands of `vllm`, and of Baton's plans, that have no twin."""

SHORT = {
    "-tp": "tensor_parallel_size",
    "-pp": "pipeline_parallel_size",
    "-dp": "data_parallel_size",
    "-dpn": "data_parallel_rank",
    "-dpr": "data_parallel_start_rank",
    "-dpl": "data_parallel_size_local",
    "-dpa": "data_parallel_address",
    "-dpp": "data_parallel_rpc_port",
    "-dpb": "data_parallel_backend",
    "-dph": "data_parallel_hybrid_lb",
    "-dpe": "data_parallel_external_lb",
    "-dpm": "data_parallel_multi_port_external_lb",
    "-dcp": "decode_context_parallel_size",
    "-pcp": "prefill_context_parallel_size",
    "-ep": "enable_expert_parallel",
    "-asc": "api_server_count",
    "-n": "nnodes",
    "-r": "node_rank",
    "-q": "quantization",
    "-sc": "speculative_config",
    "-dc": "diffusion_config",
    "-cc": "compilation_config",
    "-ac": "attention_config",
    "-O": "optimization_level",
}
"""Short flags. `-O3` has its value within."""
