"""nextslice for sites that deploy ML backends with ``label-studio-ml start`` (label-studio-ml 2.x).

`label_studio_ml` is imported in this folder and nowhere else. ``label-studio-ml start`` puts the
folder on ``sys.path``: no file here may have the name of a module that anybody imports,
``label_studio_ml.py`` least of all.
"""
