"""Answers bound to a grammar: what is asked for, in the form that llguidance reads, checked and followed.

    build.py    JSON schema, regular expression, Lark, calls of tools  ->  grammar
    check.py    head: a grammar -> its error, before anything is computed
    matcher.py  tail: tokens so far -> which tokens may come next, and which must

A grammar is text (`SamplingParams.grammar`), travels once with its session, and is compiled on the tail. No
MLX here: masks are numpy arrays.
"""
