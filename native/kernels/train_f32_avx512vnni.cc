// train_f32 of the avx512vnni path; see train_f32.h.
#include "train_f32.h"

namespace rw {
const TrainKernel train_f32_avx512vnni = {train_forward, train_backward};
}
