"""How any model is named, found, fetched, loaded and checked. Import the module you need."""

import logging

# transformers imports bitsandbytes wherever it is installed, which then looks for a faster bf16
# kernel to download, and says that it has none. Potstill does not multiply with it (quantised.py).
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: not record.getMessage().startswith("Failed to load CPU gemm_4bit_forward")
)

# And DeepSpeed to save a model, which says on standard output that there is no GPU.
logging.getLogger("DeepSpeed").addFilter(
    lambda record: not record.getMessage().startswith("Setting accelerator to CPU")
)
