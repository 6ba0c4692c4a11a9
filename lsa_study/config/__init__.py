"""From YAML to runs: settings, operators, strict reading, layers, studies, the contrast contract.

Nothing here imports torch; everything else may import this.
"""
