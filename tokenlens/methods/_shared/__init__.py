"""What several methods are made of. A piece that one method alone needs lies in its folder.

Without torch, for configs: ``words``, ``samplers``, ``noise``, ``gate.fields``, ``gate.switching``,
``hidden_feedback.fields``. For steps: ``logits`` (edits), ``waves``, ``endings`` (texts that end or
prolong thinking), ``exempt`` (texts to ids), ``truncation``, ``rollout_noise``, and two whole steps
that several methods share, ``gate.step`` and ``hidden_feedback.step``.
"""
