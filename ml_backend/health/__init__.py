"""What the service stands on, examined for a person: what is wrong, and what mends it.

One check a part, each a `Finding`; `examination` names them all. Where a part is looked at
elsewhere (`rounds.readiness`), it is asked there.
"""
