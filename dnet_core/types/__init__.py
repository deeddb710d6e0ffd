"""The values of the system: frozen, lawful once they exist, free of any library.

    ring.py        what runs where        LayerWindow, Assignment, RingPlan
    profiles.py    what was measured      DeviceProfile, LinkProfile, ModelProfile
    generation.py  what is asked and told SamplingParams, GenerationRequest, TokenText, GenerationDone

Import names from their module; this file exports nothing, so that each import says where it is from.
"""
