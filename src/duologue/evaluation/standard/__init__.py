"""Standard benchmarks of language models through lm-evaluation-harness, on the backends that sessions run on.

`feeding` scores and generates on a backend, `answering` does so with one or two models and remembers the results,
`harness` presents them to lm-evaluation-harness, `benchmarks` names the tasks and reads local files, and `sandbox` runs
code that a model wrote.
"""
