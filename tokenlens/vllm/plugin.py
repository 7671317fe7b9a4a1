"""The plugin that vLLM loads in each of its processes, and what it installs.

``register`` is the entry point ``vllm.general_plugins: tokenlens``. It changes nothing by itself:
it waits for the modules below, and what it puts there acts only in engines whose
``logits_processors`` name our class. It is needed because the scheduler may live in a process that
never loads logits processors, and because a compiled graph must not be shared with engines without
us.
"""

from types import ModuleType
from typing import Any

from tokenlens import __version__
from tokenlens.serving import admission
from tokenlens.serving.hooks import after_import, wrap
from tokenlens.vllm import doors
from tokenlens.vllm.refusals import MARK, asked_for, check_engine

_INSTALLED = False


def register() -> None:
    """Entry point; may be called any number of times in any process."""
    install()


def install() -> None:
    """Put the hooks in place, now or when their modules are imported."""
    global _INSTALLED
    if _INSTALLED:
        return
    _INSTALLED = True
    after_import("vllm.engine.arg_utils", _arguments)
    after_import("vllm.v1.core.kv_cache_utils", _block_hashes)
    after_import("vllm.v1.core.sched.scheduler", _scheduler)
    after_import("vllm.v1.worker.gpu_model_runner", _first_runner)
    after_import("vllm.v1.worker.cpu_model_runner", _first_runner_cpu)
    after_import("vllm.v1.worker.gpu.model_runner", _second_runner)
    after_import("vllm.v1.engine.input_processor", _admission)
    after_import("vllm.v1.engine.async_llm", _async_admission)
    after_import("vllm.v1.engine.output_processor", _outputs)
    after_import("vllm.v1.engine.parallel_sampling", _samples)
    for kind in ("chat_completion", "completion"):
        after_import(f"vllm.entrypoints.openai.{kind}.protocol", _beams)
        after_import(f"vllm.entrypoints.openai.{kind}.serving", _streams)
    for kind in ("chat_completion", "completion", "responses"):
        after_import(f"vllm.entrypoints.openai.{kind}.protocol", doors.install_requests)
    after_import("vllm.entrypoints.openai.responses.serving", _streams)
    for kind in ("transcription", "translation"):
        name = f"vllm.entrypoints.speech_to_text.{kind}.protocol"
        after_import(name, doors.install_transcripts)
    after_import("vllm.entrypoints.anthropic.serving", _messages)
    after_import("vllm.entrypoints.scale_out.token_in_token_out.serving", _streams)
    after_import("vllm.entrypoints.launchers.app", _application)


def _arguments(module: ModuleType) -> None:
    wrap(module.EngineArgs, "create_engine_config", _create_engine_config)


def _create_engine_config(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    config = original(self, *args, **kwargs)
    if asked_for(config):
        check_engine(config)
        # The engine's processes inherit it from this one.
        admission.secret()
        # Part of the key of vLLM's compile cache: a graph without our op must not be loaded.
        config.additional_config = {**(config.additional_config or {}), MARK: __version__}
    return config


def _block_hashes(module: ModuleType) -> None:
    from tokenlens.vllm import engine

    engine.install_hashes(module)


def _scheduler(module: ModuleType) -> None:
    from tokenlens.vllm import engine

    wrap(module.Scheduler, "update_from_output", engine.update_from_output)
    wrap(module.Scheduler, "add_request", engine.add_request)


def _first_runner(module: ModuleType) -> None:
    from tokenlens.vllm import mrv1

    mrv1.install(module.GPUModelRunner)


def _first_runner_cpu(module: ModuleType) -> None:
    from tokenlens.vllm import mrv1

    mrv1.install_subclass(module.CPUModelRunner)


def _second_runner(module: ModuleType) -> None:
    from tokenlens.vllm import mrv2

    mrv2.install(module.GPUModelRunner)


def _admission(module: ModuleType) -> None:
    from tokenlens.vllm import frontend

    wrap(module.InputProcessor, "__init__", frontend.init_processor)
    wrap(module.InputProcessor, "process_inputs", frontend.process_inputs)


def _async_admission(module: ModuleType) -> None:
    from tokenlens.vllm import frontend

    wrap(module.AsyncLLM, "add_request", frontend.add_request)


def _outputs(module: ModuleType) -> None:
    from tokenlens.vllm import frontend

    frontend.install_outputs(module)


def _beams(module: ModuleType) -> None:
    from tokenlens.vllm import frontend

    for name in ("ChatCompletionRequest", "CompletionRequest"):
        request = getattr(module, name, None)
        if request is not None and request.__module__ == module.__name__:
            wrap(request, "to_beam_search_params", frontend.to_beam_search_params)


def _streams(module: ModuleType) -> None:
    from tokenlens.vllm import frontend, streams

    for server, name in (
        ("OpenAIServingChat", "chat_completion_stream_generator"),
        ("OpenAIServingCompletion", "completion_stream_generator"),
        ("ServingTokens", "serve_tokens_stream_generator"),
    ):
        if hasattr(module, server):
            wrap(getattr(module, server), name, streams.stream_generator)
    for server, name in (
        ("OpenAIServingChat", "create_chat_completion"),
        ("OpenAIServingCompletion", "create_completion"),
        ("OpenAIServingResponses", "create_responses"),
        ("ServingTokens", "serve_tokens"),
    ):
        if hasattr(module, server) and name in vars(getattr(module, server)):
            wrap(getattr(module, server), name, frontend.create)
    if hasattr(module, "OpenAIServingCompletion"):
        server, name = module.OpenAIServingCompletion, "request_output_to_completion_response"
        wrap(server, name, streams.whole_completion)


def _messages(module: ModuleType) -> None:
    from tokenlens.vllm import streams

    server = module.AnthropicServingMessages
    wrap(server, "create_messages", doors.create_messages)
    wrap(server, "message_stream_converter", streams.message_stream)


def _application(module: ModuleType) -> None:
    # Not the maker of the application, which others have imported by value.
    wrap(module, "init_entrypoints_middleware", doors.init_middleware)


def _samples(module: ModuleType) -> None:
    from tokenlens.vllm import frontend

    wrap(module.ParentRequest, "_get_child_sampling_params", frontend.child_sampling_params)
