/* train.h: what optimiser steps share: clipping and AdamW over blocks of weights. */
#ifndef ASP_TRAIN_INTERNAL_H
#define ASP_TRAIN_INTERNAL_H

#include "model/model.h"

#endif
