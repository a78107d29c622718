"""What is removed around an e-mail that was written in chat."""

import json
import time

import pytest

from offscript.evaluation.email_cleaning import CLEANINGS, clean, clean_as_published
from tests.published import ROOT, needs_published

BODY = "Hi Ada,\n\nthe parcel is late: it snowed. Oh, joy.\n\nYours,\nOtto"
# name: text, whether each rule (ours, published) leaves BODY alone of it
TEXTS = {
    "the body alone": (BODY, True, True),
    "space around it": (f"\n {BODY}\n\n", True, False),
    "announced": (f"Here is the e-mail:\n\n{BODY}", True, False),
    "announced as theirs are": (f"Here's the email body:\n\n{BODY}", True, True),
    "announced with an assent": (f"Sure! Here's a draft of the email:\n\n{BODY}", True, False),
    "assent in a line of its own": (f"Certainly!\n\nBelow is the body of your e-mail.\n\n{BODY}", True, False),
    "announced without a colon": (f"Oh great, here is the message you wanted.\n\n{BODY}", True, False),
    "subject": (f"Subject: The parcel\n\n{BODY}", True, True),
    "headers in bold": (f"**To:** ada@b.c\n**Subject:** The parcel\n\n{BODY}", True, True),
    "header with its colon outside of the bold": (f"**Subject**: The parcel\n\n{BODY}", True, False),
    "subject line": (f"Subject line: The parcel\n{BODY}", True, False),
    "announced, headers, label": (
        f"Here is my draft:\n\nSubject: The parcel\nTo: Ada\n\nBody:\n\n{BODY}", True, True,
    ),
    "label": (f"**Email body:**\n{BODY}", True, True),
    "revised": (f"### Revised e-mail:\n\n{BODY}", True, False),
    "fence": (f"```\n{BODY}\n```", True, True),
    "fence with a language": (f"```text\nSubject: Late\n\n{BODY}\n```", True, True),
    "fence between remarks": (f"Here you go.\n\n```\n{BODY}\n```\n\nLet me know if it is too long.", True, False),
    "rules around it": (f"Here is the email:\n\n---\n\n{BODY}\n\n---", True, False),
    "remark after a rule": (f"{BODY}\n\n---\n\n*Note: I kept it short.*", True, False),
    "question after a rule": (f"{BODY}\n\n***\nWould you like another tone?", True, False),
}  # fmt: skip
# What is part of the e-mail, in a text of which our rule leaves everything.
KEPT = {
    "signature after a rule": f"{BODY}\n\n---\nOtto, Kestrel Freight",
    "postscript after a rule": f"{BODY}\n\n---\n\nP.S. It snowed here, too.",
    "greeting that names a message": f"Dear message desk:\n\n{BODY}",
    "a report that is enclosed": "Ada,\n\nhere is the draft of the report:\n\n- snow\n- more snow",
    "a colon in the first line": "The parcel is late: it snowed.\n\nOtto",
    "first line that speaks of a draft": "Here is a draft budget that will make you weep.\nOtto",
    "code in the body": "Hi Ada,\n\nrun this:\n\n```\nls\n```\n\nOtto",
    "a rule in the body": "Hi Ada,\n\nfirst part\n\n---\n\nsecond part\n\nOtto",
    "line separators": "Hi Ada,\r\nit snowed.\u2028Yours,\x0bOtto",
    "nothing but a header": "Subject: The parcel",
    "nothing but an announcement": "Here is the e-mail:",
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_around_the_body_is_removed(name):
    text, ours, published = TEXTS[name]
    assert ours == (clean(text) == BODY), clean(text)
    assert published == (clean_as_published(text) == BODY), clean_as_published(text)
    assert BODY in text and BODY in clean_as_published(text)


@pytest.mark.parametrize("name", KEPT)
def test_what_belongs_to_the_e_mail_is_kept(name):
    assert clean(KEPT[name]) == KEPT[name]


def test_cleaning_again_changes_nothing():
    for rule in CLEANINGS.values():
        for text, *_ in TEXTS.values():
            assert rule.clean(rule.clean(text)) == rule.clean(text)


def test_the_published_rule_may_leave_nothing():
    assert clean_as_published("Subject: The parcel\n") == ""
    assert clean_as_published("Subject: The parcel") == "Subject: The parcel"


@pytest.mark.parametrize(
    "piece", ["`", "```\n", "---\n", "here ", "body ", "Subject:\n", "the new ", "*", " ", "> "]
)
@pytest.mark.parametrize("rule", CLEANINGS)
def test_a_degenerate_text_is_cleaned_in_bounded_time(rule, piece):
    start = time.process_time()
    for text in (piece * (30_000 // len(piece)), piece * (30_000 // len(piece)) + "\nx"):
        CLEANINGS[rule].clean(text)
    assert time.process_time() - start < 10


@needs_published
def test_e_mails_that_were_sent_by_a_tool_seldom_have_anything_around_them():
    lines = (ROOT / "predictions" / "agentic_email.jsonl").read_text(encoding="utf-8").splitlines()
    bodies = [json.loads(line)["email_body"].strip() for line in lines]
    changed = {name: [b for b in bodies if rule.clean(b) != b] for name, rule in CLEANINGS.items()}
    assert changed["ours"] == changed["published"] and len(changed["ours"]) == 13
    assert all(body.startswith("Subject:") for body in changed["ours"])
