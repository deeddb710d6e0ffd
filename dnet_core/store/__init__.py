"""Where model files come from, and where each tensor's bytes are.

catalog.py      a name a user may give -> a model directory
fetch.py        the hub: whole models, or only their headers
imports.py      GGUF -> model directory, once (the head's side; MLX runs in a child process)
gguf.py         ... the child: tensors and config
gguf_header.py  ... what a GGUF file says about itself
gguf_tokens.py  ... its tokenizer
checkpoint.py   a model directory -> config and byte ranges of all tensors
child.py        helper processes that report in JSON lines
"""
