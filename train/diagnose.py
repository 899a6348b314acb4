"""`python -m train diagnose --model M --data STORE`: what has a model learnt, and what has gone wrong with it?

The monitors of training (`train/losses.py`) on a few clips of each store, with words beside what is bad:

| row               | says                                                                                             |
|-------------------|--------------------------------------------------------------------------------------------------|
| loss              | with default weights, and its terms                                                              |
| a head            | its error, in the unit of its loss term and without confidence; that of a trivial answer; and    |
|                   | the share of queries that its term leaves out, because nothing is known                          |
| spread, depth     | ratio of predicted to true spread of points, and of their depth, and its correlation, per clip   |
| confidence        | its mean, and its rank correlation with the relative error, per clip: -1 would be perfect        |
| gradient          | its norm in each part of the network, of the mean loss of the clips                              |

Trivial answers: one constant depth on the true ray (position), nothing moves (projection, displacement), one
probability for all (visibility), a surface that faces the camera of t_cam (normal).
"""
