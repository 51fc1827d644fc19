// winograd2_f32 and winograd4_f32 of the avx512vnni path; see winograd_f32.h.
#include "winograd_f32.h"

namespace rw {
const WinogradKernel winograd2_f32_avx512vnni = {2, Winograd<2>::packed_bytes, Winograd<2>::pack, Winograd<2>::scratch_bytes, Winograd<2>::run};
const WinogradKernel winograd4_f32_avx512vnni = {4, Winograd<4>::packed_bytes, Winograd<4>::pack, Winograd<4>::scratch_bytes, Winograd<4>::run};
}
