"""The body of each stage: `run(job)` reads the inputs, calls the method, fills `job.out`.

The module of stage `teacher-sft` is `tasks.stages.teacher_sft`. Returns the metrics that go into
the manifest.
"""
