"""`rlt/<stage>` from its form: on committed inputs, with edits, again, and with mistakes."""

from prefect.client.schemas.objects import FlowRun

from tests.server.conftest import Server


def test_nothing_changed_is_cached(server: Server, finished: FlowRun) -> None:
    run = server.finish(server.start("teacher-grpo", profile="smoke"))
    assert run.state and run.state.name == "Cached"


def test_an_edit_makes_a_new_artifact_and_leaves_the_old_one(
    server: Server, finished: FlowRun
) -> None:
    store = server.open_store()
    old = store.find("smoke/student-sft[dataset]@0")
    edits = {"student_sft": {"learning_rate": 2e-6}}
    run = server.finish(
        server.start("student-sft", profile="smoke", variant="dataset", overrides=edits)
    )
    assert run.state and run.state.name == "Completed", server.log_of(run.id)
    assert run.name == "student-sft[dataset] smoke student_sft.learning_rate=2e-06"
    new = store.find("smoke/student-sft[dataset]@0")
    assert new.ref.key != old.ref.key
    assert store.manifest(old.ref.kind, old.ref.key) == old
    assert new.inputs == old.inputs
    assert new.config["sft"] == {**old.config["sft"], "learning_rate": 2e-6}
    # Empty inputs were resolved once, and stand where a retry reads them.
    assert server.run(run.id).parameters["inputs"] == {
        name: ref.key for name, ref in new.inputs.items()
    }
    # Downstream, empty now means what this run left.
    read = server.finish(server.start("evaluation", profile="smoke", variant="dataset"))
    assert server.run(read.id).parameters["inputs"]["model"] == new.ref.key


def test_inputs_may_be_named(server: Server, finished: FlowRun) -> None:
    base = server.open_store().find("smoke/base-model")
    run = server.finish(
        server.start(
            "evaluation", profile="smoke", variant="rlt", inputs={"model": base.ref.key[:9]}
        )
    )
    assert run.state and run.state.is_completed(), run.state
    assert server.run(run.id).parameters["inputs"]["model"] == base.ref.key


def test_a_mistake_is_one_line(server: Server) -> None:
    run = server.finish(server.start("trace-generation", profile="tiny"))
    assert run.state and run.state.is_failed()
    assert "rlt/full-pipeline" in str(run.state.message)
    assert "Traceback" not in server.log_of(run.id)
