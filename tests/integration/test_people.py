"""Who is at it now, of a real Label Studio: what it tells of submissions and of others' drafts."""

from __future__ import annotations

from collections.abc import Callable

from ml_backend.embedded.label_studio import Session
from ml_backend.rounds.people import seen_now
from ml_backend.rounds.service import Service
from tests.integration.conftest import LiveProject, invite


def test_submissions_and_the_drafts_of_others_tell_who_is_at_it(
    service: Service, session: Session, make_project: Callable[..., LiveProject]
) -> None:
    project = make_project(connect=False)
    anna, ben = (project.annotator(person) for person in invite(session, ["anna", "ben"]))
    first = anna.label_next()
    begun = ben.next_task()
    assert first is not None
    assert begun is not None
    assert begun["id"] != first["id"]
    ben.session.json("POST", f"/api/tasks/{begun['id']}/drafts", json={"result": []})
    seen = seen_now(service.studio, project.number, [])
    assert seen.unanswered == ()
    tasks = {seen.users[who].email: task for who, (_, task) in seen.last.items()}  # type: ignore[index]
    assert tasks == {anna.session.email: first["id"], ben.session.email: begun["id"]}
