"""The head's side of the ring: text in, tokens round the ring, text out. No MLX here.

tokenizer.py      text <-> token ids, end-of-sequence ids
chat_template.py  messages -> the prompt text a model was trained on
detokenize.py     tokens -> text, one at a time
stop.py           stop strings, across token boundaries
"""
