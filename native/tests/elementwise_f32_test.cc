// unary_f32, binary_f32 and softmax_f32: the paths agree bit for bit, results do not depend on where in a run a value lies,
// and they are near the true functions in float64.
//
// Bounds to the truth: a generous multiple of u = 2^-24 that covers the rounding of each sequence, with the amplification written
// beside it; their purpose is to notice a wrong constant (bit equality with NumPy is tests/native/test_float_math.py).
#include "f32_testing.h"

using namespace testing;

namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// True value and permitted error for function f at x with parameters a, b; false outside what the sequence is meant for.
bool truth(int f, double x, double a, double b, double* y, double* bound) {
  const double eps = 2 * kUnit;
  double amplified = 4 * eps;  // relative
  switch (f) {
    case 0: *y = x; break;
    case 1: *y = x > 0 ? x : 0; break;
    case 2: *y = x < a ? a : x > b ? b : x; break;
    case 3: *y = x > 0 ? x : x * a; break;
    case 4: *y = sigmoid(x), amplified = 8 * eps; break;
    case 5: *y = x * sigmoid(x), amplified = 8 * eps; break;
    case 6: *y = std::fmin(std::fmax(x * a + b, 0), 1); *bound = 4 * eps * (std::fabs(x * a) + std::fabs(b)); return std::fabs(x) < 1e6;
    case 7: *y = x * std::fmin(std::fmax(x / 6 + 0.5, 0), 1); *bound = 4 * eps * std::fabs(x); return true;
    case 8: *y = std::tanh(x), *bound = 12 * eps; return true;  // cancels near 0: absolute
    case 9: *y = std::exp(x), amplified = 8 * eps; if (x < -87 || x > 88) return false; break;
    // x * sigmoid(v): an error of d in v changes the result by x * sigmoid * d
    case 10: { const double v = 2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x); *y = x * sigmoid(v), amplified = (8 + 6 * std::fabs(v)) * eps; break; }
    case 11: *y = x * std::tanh(std::log1p(std::exp(x))), amplified = 16 * eps; if (x < -30) return false; break;
    case 12: *y = x > 0 ? x : a * std::expm1(x); *bound = 8 * eps * std::fmax(std::fabs(a), std::fabs(x)); return true;
    case 13: *y = std::fmax(x, 0) + std::log1p(std::exp(-std::fabs(x))); *bound = 8 * eps * (1 + std::fmax(x, 0)); return true;
    case 14: *y = std::sqrt(x); if (x < 0) return false; break;
    case 15: *y = std::fabs(x); break;
    case 16: *y = -x; break;
    case 17: *y = x * a + b, *bound = 4 * eps * (std::fabs(x * a) + std::fabs(b)); return true;
    case 18: *y = 1 / x; if (std::fabs(x) < 1e-37) return false; break;
    case 19: *y = std::log(x); if (x < 1.2e-38) return false; *bound = 4 * eps * (1e-7 + std::fabs(*y)); return true;
    case 20: *y = x * x; if (std::fabs(x) > 1e18 || std::fabs(x) < 1e-18) return false; break;
    case 21: *y = x * 0.5 * std::erfc(-x / std::sqrt(2.0)); *bound = 3e-6; return std::fabs(x) < 50;  // the fit of logit(Phi) is that good
    default: return false;
  }
  if (std::fabs(x) > 80 && f >= 4 && f <= 11) return false;  // the result is about to underflow or is x
  *bound = amplified * std::fabs(*y) + 2e-38 * (1 + std::fabs(x));  // exp ends at exp(-87) = 1.6e-38
  return true;
}

void unary(Random& random) {
  const int n = 20000 + 13;
  std::vector<float> x(n), reference(n);
  for (int i = 0; i < n; i++) {
    const float magnitude = std::pow(2.0f, random.real(-20, i % 3 == 0 ? 20.0f : 5.0f));
    x[i] = i % 2 ? magnitude : -magnitude;
  }
  const float special[] = {0.0f, -0.0f, 1.0f, -1.0f, 88, -88, 87, -87, 1e-40f, -1e-40f, 3.4e38f, -3.4e38f, INFINITY, -INFINITY, 6, -6, 20};
  memcpy(x.data(), special, sizeof special);
  for (int f = 0; f <= 21; f++) {
    const float a = f == 2 ? -0.7f : 0.2f, b = 0.5f;
    rw::kernels(rw::Isa::portable).unary_f32(x.data(), reference.data(), n, f, a, b);
    for (int i = 17; i < n; i++) {
      double y = 0, bound = 0;
      if (truth(f, x[i], a, b, &y, &bound) && !(std::fabs(reference[i] - y) <= bound)) {
        fail("unary %d of %.9g is %.9g, not %.9g (bound %.3g)", f, x[i], reference[i], y, bound);
        break;
      }
    }
    for (rw::Isa isa : paths())
      for (int length : {n, 1, 2, 3, 5, 7, 15, 16, 17, 31, 33, 63, 65, 100}) {
        Fenced in(length * sizeof(float)), out(length * sizeof(float));
        memcpy(in.bytes(), x.data(), length * sizeof(float));
        rw::kernels(isa).unary_f32(in.floats(), out.floats(), length, f, a, b);
        for (int i = 0; i < length; i++)
          if (!same_bits(out.floats()[i], reference[i]) && out.floats()[i] != reference[i] && !(std::isnan(out.floats()[i]) && std::isnan(reference[i]))) {
            fail("unary %d %s: of %.9g is %.9g, portable %.9g (n %d)", f, name(isa), x[i], out.floats()[i], reference[i], length);
            break;
          }
        rw::kernels(isa).unary_f32(in.floats(), in.floats(), length, f, a, b);  // in place
        if (memcmp(in.bytes(), out.bytes(), length * sizeof(float)) != 0) fail("unary %d %s: differs in place", f, name(isa));
      }
  }
}

double pair_truth(int f, double a, double b) {
  switch (f) {
    case 0: return a + b;
    case 1: return a - b;
    case 2: return a * b;
    case 3: return a / b;
    case 4: return a > b ? a : b;
    case 5: return a < b ? a : b;
    default: return std::pow(a, b);
  }
}

void binary(Random& random) {
  for (int f = 0; f <= 6; f++)
    for (int n : {1, 3, 4, 8, 15, 16, 17, 40, 1000})
      for (int a_step : {0, 1, 3})
        for (int b_step : {0, 1, 2}) {
          Fenced a(sizeof(float) * ((n - 1) * a_step + 1)), b(sizeof(float) * ((n - 1) * b_step + 1));
          for (int i = 0; i <= (n - 1) * a_step; i++) a.floats()[i] = random.real(-3, 3);
          for (int i = 0; i <= (n - 1) * b_step; i++) b.floats()[i] = f == 6 && random.below(2) ? static_cast<float>(random.below(9) - 4) : random.real(-3, 3);
          std::vector<float> reference(n);
          for (rw::Isa isa : paths()) {
            const int then = random.below(3) == 0 ? 1 : 0;
            Fenced y(sizeof(float) * n);
            rw::kernels(isa).binary_f32(a.floats(), a_step, b.floats(), b_step, y.floats(), n, f, then, 0, 0);
            for (int i = 0; i < n; i++) {
              const double p = a.floats()[i * a_step], q = b.floats()[i * b_step];
              double t = pair_truth(f, p, q);
              // rounded once; pow goes through exp(y log|x|): the error of y log|x| is relative, and becomes relative of the result
              const double bound = (f == 6 ? (16 + 8 * std::fabs(q * std::log(std::fabs(p)))) : 1) * kUnit * std::fabs(t);
              if (then == 1 && !std::isnan(t)) t = t > 0 ? t : 0;
              const float got = y.floats()[i];
              if (std::isnan(t) ? !std::isnan(got) : !(std::fabs(got - t) <= bound)) {
                fail("binary %d %s: (%.9g, %.9g) gives %.9g, not %.9g", f, name(isa), p, q, got, t);
                break;
              }
            }
            rw::kernels(isa).binary_f32(a.floats(), a_step, b.floats(), b_step, y.floats(), n, f, 0, 0, 0);
            if (isa == rw::Isa::portable) reference.assign(y.floats(), y.floats() + n);
            for (int i = 0; i < n; i++)
              if (!same_bits(reference[i], y.floats()[i]) && !(std::isnan(reference[i]) && std::isnan(y.floats()[i]))) {
                fail("binary %d %s: not the bits of the portable path", f, name(isa));
                break;
              }
          }
        }
}

void softmax(Random& random) {
  for (int n = 1; n < 200; n += n < 70 ? 1 : 9)
    for (float spread : {1.0f, 20.0f, 200.0f}) {
      Fenced x(sizeof(float) * n);
      double top = -1e30, sum = 0;
      for (int i = 0; i < n; i++) x.floats()[i] = random.real(-spread, spread), top = std::fmax(top, x.floats()[i]);
      for (int i = 0; i < n; i++) sum += std::exp(x.floats()[i] - top);
      std::vector<float> reference(n);
      for (rw::Isa isa : paths()) {
        Fenced y(sizeof(float) * n);
        rw::kernels(isa).softmax_f32(x.floats(), y.floats(), n);
        if (isa == rw::Isa::portable) reference.assign(y.floats(), y.floats() + n);
        for (int i = 0; i < n; i++) {
          const double t = std::exp(x.floats()[i] - top) / sum;
          // x - top rounds to within u |x - top|, which exp makes relative; then exp (16 u), n / 16 + 4 additions and one division;
          // below -87 exp is cut off
          const double bound = t * kUnit * (2 * std::fabs(x.floats()[i] - top) + 32 + n / 16.0) + 2e-38;
          if (!(std::fabs(y.floats()[i] - t) <= bound)) {
            fail("softmax %s: n %d, element %d is %.9g, not %.9g", name(isa), n, i, y.floats()[i], t);
            break;
          }
        }
        if (memcmp(reference.data(), y.bytes(), sizeof(float) * n) != 0) fail("softmax %s: n %d: not the bits of the portable path", name(isa), n);
      }
    }
}

}  // namespace

int main() {
  Random random;
  unary(random);
  binary(random);
  softmax(random);
  return finish("elementwise_f32", static_cast<long>(paths().size()));
}
