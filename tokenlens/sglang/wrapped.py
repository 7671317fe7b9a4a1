"""Every function of SGLang's that tokenlens wraps, and nothing else.

Each is called as ``ours(original, *args, **kwargs)`` and passes on what it was given unless the
engine runs with tokenlens or the request asks for us. Beside them, on objects of such engines
alone: the ``_get_pruned_states`` in front of the model's head (:mod:`tokenlens.sglang.head`), the
sampler's ``_preprocess_logits``, its ``output_logprob_processor.compute_logprobs``
(:mod:`tokenlens.sglang.scheduler`), the class of the model's input embedding
(:mod:`tokenlens.sglang.embedding`) and that of decoder layers which files of the operator's name
(:mod:`tokenlens.sglang.layers`). Imports nothing.
"""

from collections.abc import Mapping

from tokenlens.serving.hooks import Targets

ALWAYS: Targets = {
    "sglang.srt.server_args": {
        "ServerArgs.add_cli_args": "plugin.add_cli_args",
        "ServerArgs.from_cli_args": "plugin.from_cli_args",
        "ServerArgs.check_server_args": "plugin.check_server_args",
    },
    "sglang.srt.managers.tokenizer_manager": {
        "TokenizerManager._create_tokenized_object": "plugin.create_tokenized_object",
    },
    "sglang.srt.managers.scheduler": {
        "Scheduler._add_request_to_queue": "plugin.add_request_to_queue",
    },
}
"""In every process, with tokenlens or without: the flag, and the refusal of specs without it."""

SWITCHED_ON: Targets = {
    # The start: no scheduler without tokenlens.
    "sglang.srt.entrypoints.engine": {
        "Engine._launch_subprocesses": "frontend.launch_subprocesses",
        "_wait_for_scheduler_ready": "frontend.wait_for_scheduler_ready",
    },
    # The front end: admission, noise of samples, traces.
    "sglang.srt.managers.tokenizer_manager": {
        "TokenizerManager.__init__": "frontend.init_manager",
        "TokenizerManager._send_one_request": "frontend.send_one_request",
        "TokenizerManager._tokenize_one_request": "frontend.tokenize_one_request",
        "TokenizerManager._batch_tokenize_and_process": "frontend.batch_tokenize_and_process",
        "TokenizerManager.update_request_meta_info": "responses.update_request_meta_info",
        "TokenizerManager._handle_batch_output": "responses.handle_batch_output",
        "TokenizerManager._handle_abort_req": "responses.handle_abort_req",
    },
    "sglang.srt.entrypoints.openai.serving_completions": {
        "OpenAIServingCompletion._convert_to_internal_request": (
            "frontend.convert_to_internal_request"
        ),
        "OpenAIServingCompletion._build_completion_response": "responses.build_response",
        "OpenAIServingCompletion._generate_completion_stream": "responses.stream",
    },
    "sglang.srt.entrypoints.openai.serving_chat": {
        "OpenAIServingChat._convert_to_internal_request": "frontend.convert_to_internal_request",
        "OpenAIServingChat._build_chat_response": "responses.build_response",
        "OpenAIServingChat._generate_chat_stream": "responses.stream",
    },
    # The scheduler's process: the runner, the radix cache's guard, the handshake.
    "sglang.srt.model_executor.model_runner": {
        "ModelRunner.alloc_memory_pool": "scheduler.alloc_memory_pool",
        "ModelRunner.sample": "scheduler.sample",
    },
    "sglang.srt.model_executor.forward_batch_info": {
        "ForwardBatch.init_new": "scheduler.init_new",
    },
    "sglang.srt.managers.scheduler": {
        "Scheduler.get_init_info": "scheduler.get_init_info",
        "Scheduler.on_idle": "scheduler.on_idle",
    },
    "sglang.srt.managers.schedule_batch": {
        "Req.update_finish_state": "scheduler.update_finish_state",
        "Req._compute_max_prefix_len": "scheduler.compute_max_prefix_len",
    },
}
"""With tokenlens. One that is missing ends the start."""

CALLED: Mapping[str, tuple[str, ...]] = {
    "sglang.srt.layers.sampler": ("Sampler._preprocess_logits", "SGLANG_RETURN_ORIGINAL_LOGPROB"),
    "sglang.srt.layers.logits_processor": ("LogitsProcessor._get_pruned_states",),
    "sglang.srt.layers.logprob_processor": ("OutputLogprobProcessor.compute_logprobs",),
    "sglang.srt.layers.vocab_parallel_embedding": ("VocabParallelEmbedding._embed_local_shard",),
    "sglang.srt.managers.auxiliary_output": ("append_auxiliary_output",),
    "sglang.srt.arg_groups.overrides": ("resolving_view",),
}
"""What is wrapped on objects, or called. One that is missing ends the start."""
