"""Label Studio: sides, the three shapes of a ranker, and annotations that say nothing."""

from __future__ import annotations

import csv
import io
import json

from preftune.data.formats import label_studio
from preftune.data.formats.label_studio_task import BUCKETS

DATA = {"prompt": "Ask.", "answer1": "one", "answer2": "two"}
ITEMS = {"prompt": "Ask.", "items": [{"id": f"m{n}", "body": text} for n, text in enumerate(("one", "two", "three"))]}


def pairwise(side, to_name="answer1,answer2", **more):
    result = [{"type": "pairwise", "from_name": "c", "to_name": to_name, "value": {"selected": side}}] if side else []
    return {"completed_by": 1, "was_cancelled": False, "result": result, "updated_at": "2024-05-06T09:00:06Z", **more}


def ranker(value):
    return {"completed_by": {"id": 3, "email": "ann@example.org"}, "result": [{"type": "ranker", "value": {"ranker": value}}]}


def task(*annotations, data=DATA, **more):
    return {"id": 1, "data": data, "annotations": list(annotations), **more}


def test_left_is_the_first_of_to_name_whatever_the_order_of_the_data(taken, ranked):
    [one], [] = taken([task(pairwise("left"))])
    [other], [] = taken([task(pairwise("left", "answer2,answer1"))])
    assert (ranked(one), ranked(other)) == ([["one"], ["two"]], [["two"], ["one"]])
    shown = {c.text: c.id for c in one.candidates}
    assert one.judgements[0].presentation == (shown["one"], shown["two"])
    assert (one.judgements[0].rater, one.judgements[0].created.isoformat()) == ("label_studio:1", "2024-05-06T09:00:06+00:00")


def test_annotations_without_an_answer_cancelled_ones_and_predictions_are_told(taken):
    """A click on the chosen side takes the answer away, and the annotation is saved all the same (label-studio#5649)."""
    fields = task(pairwise("right"), pairwise(None), pairwise("left", was_cancelled=True), predictions=[{}], drafts=[{}, {}])
    [row], [] = taken([fields])
    assert len(row.judgements) == 1
    assert sorted(row.notes) == [
        "a cancelled annotation is left out", "a draft is left out", "a draft is left out", "a prediction is left out",
        label_studio.NO_ANSWER,
    ]  # fmt: skip


def test_a_text_area_is_the_rationale_and_no_e_mail_address_is_kept(taken):
    annotation = ranker(["m1", "m0"])
    annotation["result"].append({"type": "textarea", "value": {"text": ["clear", "short"]}})
    [row], [] = taken([task(annotation, data=ITEMS)])
    assert (row.judgements[0].rationale, row.judgements[0].rater) == ("clear\nshort", "label_studio:3")
    assert "example.org" not in repr(row)


def test_a_ranker_is_best_first_in_each_of_its_shapes_and_unranked_is_not_last(taken, ranked):
    rows, [] = taken(
        [task(ranker(value), data=ITEMS) for value in (["m2", "m0", "m1"], {"_": ["m1"], "rank": ["m2", "m0"]}, {"best": ["m1", "m0"]})]
    )
    assert [ranked(row) for row in rows] == [[["three"], ["one"], ["two"]], [["three"], ["one"]], [["two"], ["one"]]]


def test_buckets_with_names_of_their_own_are_no_ranking(taken):
    [row], [] = taken([task(ranker({"_": [], "relevant": ["m1"], "biased": ["m0", "m2"]}), data=ITEMS)])
    assert (len(row.candidates), row.judgements, row.notes) == (3, (), (BUCKETS,))


def test_json_min_has_a_row_an_annotation_with_either_form_of_the_answer(taken, ranked):
    about = {**DATA, "id": 5, "annotator": 2, "annotation_id": 9, "lead_time": 4.2}
    rows, [aside] = taken([{**about, "c": {"selected": "right"}}, {**about, "c": "left", "comment": "why"}, {**about, "c": None}])
    assert [ranked(row) for row in rows] == [[["two"], ["one"]], [["one"], ["two"]]]
    assert (rows[1].unused, aside.reason) == (("comment",), "the annotation has no answer")


def test_the_csv_export_has_its_answers_as_json_in_cells(taken, ranked, written, tmp_path):
    text = io.StringIO()
    table = csv.DictWriter(text, [*DATA, "id", "annotator", "annotation_id", "c"])
    table.writeheader()
    # An answer that is itself JSON stays the text that it is.
    table.writerow({**DATA, "answer2": '{"a": 1}', "id": 1, "annotator": 2, "annotation_id": 3, "c": json.dumps({"selected": "right"})})
    [row], [] = taken(text.getvalue())
    assert ranked(row) == [['{"a": 1}'], ["one"]]
