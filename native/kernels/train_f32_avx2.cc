// train_f32 of the avx2 path; see train_f32.h.
#include "train_f32.h"

namespace rw {
const TrainKernel train_f32_avx2 = {train_forward, train_backward};
}
