"""A tiny study that classifies, and one whose detectors begin from its rows."""

CLASSIFIERS = """
study: classifiers
title: Classifiers
question: What do detectors begin from?
factor: [model.op]
baseline: swin
set:
  data: {name: digits, image_size: 64, train_limit: 16, test_limit: 8}
  model: {backbone: swin_micro4, drop_path: 0.0}
  model.op: {kind: unified, terms: [qk, bias], norm: softmax, application: window, size: 2}
  train.epochs: 1
  train.batch_size: 8
  train.lr_batch: 8
variants:
  swin: {set: {}}
  elsa: {set: {model.op: {kind: elsa, kernel_size: 3, group_width: 8, last_stage_window: 2}}}
"""
DETECTORS = """
study: detectors
title: Detectors
question: Do classifiers help to detect?
factor: [model.op]
baseline: boxes
set:
  task: {kind: detect, size: micro}
  data: {name: scenes, image_size: 64, train_limit: 8, test_limit: 4}
  augment: {crop: none}
  model: {backbone: swin_micro4, drop_path: 0.1}
  model.op: {kind: unified, terms: [qk, bias], norm: softmax, application: window, size: 2}
  train.start: {study: classifiers}
  train.epochs: 1
  train.batch_size: 4
  train.lr_batch: 4
variants:
  boxes: {set: {}}
  elsa_boxes: {set: {model.op: {kind: elsa, kernel_size: 3, group_width: 8, last_stage_window: 2}}}
"""


def both(folder, *changes):
    """The files of both studies, some of their words replaced."""
    paths = []
    for name, text in (("classifiers", CLASSIFIERS), ("detectors", DETECTORS)):
        for study, old, new in changes:
            if study == name:
                assert text.count(old) == 1, old
                text = text.replace(old, new)
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(text)
    return paths
