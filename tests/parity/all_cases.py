"""The cases of all families."""

import cases_bit
import cases_convnext
import cases_mixer
import cases_mobilenet
import cases_resnet
import cases_text
import cases_vgg
import cases_vit

CASES = [
    *cases_bit.CASES,
    *cases_convnext.CASES,
    *cases_mixer.CASES,
    *cases_mobilenet.CASES,
    *cases_resnet.CASES,
    *cases_text.CASES,
    *cases_vgg.CASES,
    *cases_vit.CASES,
]
