"""Every function of vLLM's that tokenlens wraps, and nothing else.

Each is called as ``ours(original, *args, **kwargs)`` and passes on what it was given unless the
engine names our class or the request asks for us. Beside them, on objects of such engines alone:
the first runner's ``sampler.sample`` (:mod:`tokenlens.vllm.model_runner_v1`), the class of the
model's input embedding (:mod:`tokenlens.vllm.embedding`), that of decoder layers which files of the
operator's name (:mod:`tokenlens.serving.layer_shifts`), and a hook in front of its head
(:mod:`tokenlens.vllm.head`). The second runner's logits come through
the official interface (:mod:`tokenlens.vllm.processor`). Imports nothing.
"""

from tokenlens.serving.hooks import Targets

ENGINE: Targets = {
    # The configuration: refusals, and a mark in the key of the compile cache.
    "vllm.engine.arg_utils": {"EngineArgs.create_engine_config": "plugin.create_engine_config"},
    # The engine core: no block behind a mixture is shared; reports and failures pass by.
    "vllm.v1.core.kv_cache_utils": {"generate_block_hash_extra_keys": "engine.extra_keys"},
    "vllm.v1.core.block_pool": {"generate_block_hash_extra_keys": "engine.extra_keys"},
    "vllm.v1.simple_kv_offload.manager": {"generate_block_hash_extra_keys": "engine.extra_keys"},
    "vllm.v1.core.sched.scheduler": {
        "Scheduler.__init__": "engine.init_scheduler",
        "Scheduler.add_request": "engine.add_request",
        "Scheduler.update_from_output": "engine.update_from_output",
    },
    # The workers: one of the two runners.
    "vllm.v1.worker.gpu_model_runner": {
        "GPUModelRunner.load_model": "model_runner_v1.load_model",
        "GPUModelRunner._update_states": "model_runner_v1.update_states",
        "GPUModelRunner._prepare_inputs": "model_runner_v1.prepare_inputs",
        "GPUModelRunner.sample_tokens": "model_runner_v1.sample_tokens",
    },
    # Overrides it.
    "vllm.v1.worker.cpu_model_runner": {"CPUModelRunner.load_model": "model_runner_v1.load_model"},
    "vllm.v1.worker.gpu.model_runner": {
        "GPUModelRunner.load_model": "model_runner_v2.load_model",
        "GPUModelRunner.finish_requests": "model_runner_v2.finish_requests",
        "GPUModelRunner.add_requests": "model_runner_v2.add_requests",
        "GPUModelRunner.prepare_inputs": "model_runner_v2.prepare_inputs",
        "GPUModelRunner.postprocess_sampled": "model_runner_v2.postprocess_sampled",
        "GPUModelRunner.sample_tokens": "model_runner_v2.sample_tokens",
    },
    # The front end: admission, noise of samples, traces.
    "vllm.v1.engine.input_processor": {
        "InputProcessor.__init__": "frontend.init_processor",
        "InputProcessor.process_inputs": "frontend.process_inputs",
    },
    "vllm.v1.engine.async_llm": {"AsyncLLM.add_request": "frontend.add_request"},
    "vllm.v1.engine.parallel_sampling": {
        "ParentRequest._get_child_sampling_params": "frontend.child_sampling_params",
    },
    "vllm.v1.engine.output_processor": {
        "OutputProcessor.add_request": "outputs.add_request",
        "OutputProcessor.process_outputs": "outputs.process_outputs",
        "OutputProcessor.abort_requests": "outputs.abort_requests",
        "RequestState.from_new_request": "outputs.from_new_request",
        "RequestState._new_completion_output": "outputs.new_completion_output",
        "RequestState._new_request_output": "outputs.new_request_output",
    },
}
"""Without one of these, specs would not be carried out: no engine starts that asks for us."""

_OPENAI = "vllm.entrypoints.openai"
_SPEECH = "vllm.entrypoints.speech_to_text"

ENDPOINTS: Targets = {
    f"{_OPENAI}.chat_completion.protocol": {
        "ChatCompletionRequest.to_sampling_params": "doors.to_sampling_params",
        "ChatCompletionRequest.to_beam_search_params": "doors.to_beam_search_params",
    },
    f"{_OPENAI}.completion.protocol": {
        "CompletionRequest.to_sampling_params": "doors.to_sampling_params",
        "CompletionRequest.to_beam_search_params": "doors.to_beam_search_params",
    },
    f"{_OPENAI}.responses.protocol": {
        "ResponsesRequest.to_sampling_params": "doors.to_sampling_params",
    },
    f"{_SPEECH}.transcription.protocol": {
        "TranscriptionRequest.to_sampling_params": "doors.no_trace",
        "TranscriptionRequest.to_beam_search_params": "doors.no_trace",
    },
    f"{_SPEECH}.translation.protocol": {
        "TranslationRequest.to_sampling_params": "doors.no_trace",
        "TranslationRequest.to_beam_search_params": "doors.no_trace",
    },
    f"{_OPENAI}.chat_completion.serving": {
        "OpenAIServingChat.create_chat_completion": "frontend.create",
        "OpenAIServingChat.chat_completion_stream_generator": "streams.stream_generator",
    },
    f"{_OPENAI}.completion.serving": {
        "OpenAIServingCompletion.create_completion": "frontend.create",
        "OpenAIServingCompletion.completion_stream_generator": "streams.stream_generator",
        "OpenAIServingCompletion.request_output_to_completion_response": "streams.whole_completion",
    },
    f"{_OPENAI}.responses.serving": {"OpenAIServingResponses.create_responses": "frontend.create"},
    "vllm.entrypoints.scale_out.token_in_token_out.serving": {
        "ServingTokens.serve_tokens": "frontend.create",
        "ServingTokens.serve_tokens_stream_generator": "streams.stream_generator",
    },
    "vllm.entrypoints.generate.base.serving": {
        "GenerateBaseServing._raise_if_error": "outputs.raise_if_error",
    },
    "vllm.entrypoints.anthropic.serving": {
        "AnthropicServingMessages.create_messages": "doors.create_messages",
        "AnthropicServingMessages.message_stream_converter": "streams.message_stream",
    },
    # Not the maker of the application, which others have imported by value.
    "vllm.entrypoints.launchers.app": {"init_entrypoints_middleware": "doors.init_middleware"},
}
"""HTTP endpoints, where this vLLM has them. A missing one is left out: admission still refuses."""
