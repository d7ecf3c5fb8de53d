"""What a model has to beat: figures from the data alone, printed beside the model's own.

A perplexity or an accuracy says little until one knows what no learning, or very cheap learning, would have given on
the same targets. Each module here fits such floors on the training records and scores them on any number of
evaluation sets:

    composition     masked or next residues: training frequencies, and the protein's own composition
    bootstrap       intervals over proteins for a figure, and for the difference of two on the same targets
    classification  one label (or several) a sequence: majority, 1-3-mers, 1-3-mers with the termini apart
    regression      one number a sequence: mean, ridge on 1-3-mers, ridge on positions where lengths are equal
    residue         one state a residue: majority, the residue itself, a window of fifteen

Inputs are plain arrays, strings and lists, so a floor can never see more than the records it was handed. Nothing is
re-exported here: `composition` and `bootstrap` need numpy alone and stay free of scikit-learn's import time.
"""
