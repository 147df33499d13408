"""The body of each stage: `run(ctx)` reads the inputs, calls the method, writes to `ctx.out`.

The module of stage `teacher-sft` is `tasks.stages.teacher_sft`. Returns the metrics that go into
the manifest.
"""
