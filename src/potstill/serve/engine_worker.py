"""llama.cpp's own server in a process of its own: `python -m potstill.serve.engine_worker`.

In: one JSON line on standard input (the model, its sizes, the key), then a pipe that stays open as
long as the gateway lives. Out: one JSON line with the address, or with the reason why there is
none. A crash in native code ends this process and nothing else. Knows nothing of the gateway.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from potstill.serve.child import begun

HTTP_SPARE = 8
"""Threads of the engine beyond its slots: for health checks, tokens, and connections that idle."""


def main() -> int:
    """Serve until the gateway's end of the pipe closes."""
    job, gateway = begun()
    try:
        server = _serve(job)
    except Exception as error:
        gateway.failed(error)
        return 1
    gateway.say({"address": str(server.listening_address)})
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(0)  # without teardown: a slot may still write


def _serve(job: dict[str, Any]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = job["gguf"]
    params.n_parallel = job["parallel"]
    params.n_ctx = job["context_tokens"] * job["parallel"]
    params.kv_unified = False  # a slot's room is its own: nobody's long prompt takes another's
    params.cpuparams.n_threads = job["threads"]
    params.cpuparams_batch.n_threads = job["threads"]
    params.n_threads_http = job["parallel"] + HTTP_SPARE
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.cache_ram_mib = 0  # prompts of one user are kept in no memory that grows
    params.ctx_shift = False
    params.fit_params = False
    params.api_keys = [job["key"]]
    params.endpoint_slots = True
    params.ui = False
    params.verbosity = -1
    return xllamacpp.Server(params)


if __name__ == "__main__":
    sys.exit(main())
