// The table of kernels, one row of kernels.inc per field.
#include "kernels.h"

namespace rw {

const Kernels& kernels(Isa isa) {
  static const Kernels portable = {Isa::portable,
#define ROADWORTHY_KERNEL(name, type, avx2, avx512vnni) name##_portable,
#include "kernels.inc"
#undef ROADWORTHY_KERNEL
  };
#if defined(ROADWORTHY_X86)
  static const Kernels with_avx2 = {Isa::avx2,
#define ROADWORTHY_KERNEL(name, type, avx2, avx512vnni) name##_##avx2,
#include "kernels.inc"
#undef ROADWORTHY_KERNEL
  };
  static const Kernels with_avx512vnni = {Isa::avx512vnni,
#define ROADWORTHY_KERNEL(name, type, avx2, avx512vnni) name##_##avx512vnni,
#include "kernels.inc"
#undef ROADWORTHY_KERNEL
  };
  if (isa == Isa::avx2) return with_avx2;
  if (isa == Isa::avx512vnni) return with_avx512vnni;
#endif
  (void)isa;
  return portable;
}

}  // namespace rw
