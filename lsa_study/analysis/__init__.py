"""What finished runs say: collected, matched with a study's rows, estimated, compared, judged.

Reads run folders only through ``lsa_study.rundir``; never imports torch.
"""
