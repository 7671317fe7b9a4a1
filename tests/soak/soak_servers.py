"""The two servers of the soak: how they start, where a spec goes, what their gauges are called."""

import os
import sys
from pathlib import Path

import httpx
import psutil
from ports import free_port
from servers import VLLM_ENVIRONMENT, Process

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tokenlens" / "assets" / "tiny-reasoner-small"
NAME = "tiny"


def surroundings():
    """What both need: this tree, the environment's own programs, no network."""
    return {
        "PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
        # oneDNN keeps a kernel for each of the last 1024 shapes it met: a worker of either engine
        # grows by some 200 MiB with the sizes of its batches, with tokenlens or without.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
    }


class Server:
    """A running server with a cache that is too small for its clients."""

    name: str
    health = "/health"
    metrics_path = "/metrics"
    gauges: tuple[str, ...]
    evictions: str

    def __init__(self, log):
        self.log = log
        self.port = free_port()
        environment = {**surroundings(), **self.environment()}
        self.process = Process(self.command(), self.port, log, self.health, environment)
        self.address = self.process.address

    def command(self):
        """Its command line."""
        raise NotImplementedError

    def environment(self):
        """Variables of its own."""
        return {}

    def with_spec(self, body, spec):
        """A body that asks for a spec."""
        raise NotImplementedError

    def rss(self):
        """Resident bytes of all of its processes."""
        parent = psutil.Process(self.process.process.pid)
        return sum(p.memory_info().rss for p in (parent, *parent.children(recursive=True)))

    def metrics(self):
        """Each metric's sum over its labels."""
        text = httpx.get(
            self.address + self.metrics_path, timeout=60, follow_redirects=True, trust_env=False
        ).text
        found = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                key, _, value = line.rpartition(" ")
                key = key.split("{")[0]
                found[key] = found.get(key, 0.0) + float(value)
        return found


class Vllm(Server):
    """vLLM: 31 blocks of 32 tokens, for 32 sequences at once."""

    name = "vllm"
    gauges = (
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "tokenlens_slots_in_use",
        "tokenlens_history_pages_in_use",
    )
    evictions = "vllm:num_preemptions_total"

    def command(self):
        return [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL)),
            *("--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(self.port)),
            *("--logits-processors", "tokenlens.vllm:TokenLens", "--generation-config", "vllm"),
            *("--enforce-eager", "--dtype", "float32", "--max-model-len", "512"),
            *("--block-size", "32", "--num-gpu-blocks-override", "32", "--max-num-seqs", "32"),
            *("--enable-prefix-caching", "--kv-cache-memory-bytes", str(32 << 20)),
        ]

    def environment(self):
        return VLLM_ENVIRONMENT

    def with_spec(self, body, spec):
        return {**body, "vllm_xargs": {"tokenlens": spec}}


class Sglang(Server):
    """SGLang: 1024 tokens, for 32 requests at once, and a scheduler that hopes for the best."""

    name = "sglang"
    health = "/v1/models"
    metrics_path = "/metrics/"
    gauges = (
        "sglang:num_running_reqs",
        "sglang:num_queue_reqs",
        "tokenlens_slots_in_use",
        "tokenlens_history_pages_in_use",
    )
    evictions = "sglang:num_retracted_requests_total"

    def command(self):
        return [
            *(sys.executable, "-m", "sglang.launch_server", "--model-path", str(MODEL)),
            *("--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(self.port)),
            *("--enable-tokenlens", "--device", "cpu", "--dtype", "float32"),
            *("--attention-backend", "torch_native", "--disable-cuda-graph"),
            *("--mem-fraction-static", "0.2", "--max-total-tokens", "1024"),
            *("--max-running-requests", "32", "--schedule-conservativeness", "0.1"),
            *("--chunked-prefill-size", "64", "--context-length", "512"),
            *("--sampling-defaults", "openai", "--enable-metrics", "--skip-server-warmup"),
        ]

    def environment(self):
        fakes = ROOT / "tests" / "sglang" / "fakes"
        path = [str(fakes), surroundings()["PYTHONPATH"]]
        return {"PYTHONPATH": os.pathsep.join(path), "SGLANG_USE_CPU_ENGINE": "1"}

    def with_spec(self, body, spec):
        return {**body, "custom_params": {"tokenlens": spec}}


SERVERS = {server.name: server for server in (Vllm, Sglang)}
