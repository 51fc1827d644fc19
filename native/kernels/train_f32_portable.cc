// train_f32 of the portable path; see train_f32.h.
#include "train_f32.h"

namespace rw {
const TrainKernel train_f32_portable = {train_forward, train_backward};
}
