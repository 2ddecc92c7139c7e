// The limit: log-density and gradients of many small multivariate normals in one fused pass.
//
// Eight matrices at a time, one in each lane of a vector; each array in the scratch below holds one
// entry of eight matrices. The covariance is factored as S = L D L' with a unit lower triangular L,
// so there are no square roots, and with M = L^-1, w = D^-1 M (x - mu):
//
//     quaddist = sum_i d_i w_i^2,   a = M' w = S^-1 (x - mu),   S^-1 = M' D^-1 M
//     d/dx = -a,   d/dmu = a,   d/dS = (a a' - S^-1) / 2
//
// With the Cholesky factor given, z = L^-1 (x - mu), a = L'^-1 z, and
// d/dL = tril(a z') - diag(1 / L_ii).
//
// The log-determinant is the logarithm of one running product of pivots in each lane, whose
// exponent is taken out before it can overflow: one logarithm in all instead of one a matrix.
//
// Bad input is not handled: a limit only has to be fast. The gradients are symmetric (covariance)
// or lower triangular (Cholesky factor). Compile it with GCC, whose vector types run on any
// processor, and with -DSIZE=n, n >= 2.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 64")

typedef double lanes __attribute__((vector_size(64)));
typedef int64_t bits __attribute__((vector_size(64)));

INLINE lanes all(double x) { return lanes{} + x; }

INLINE lanes load(const double *p) {
  lanes v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

INLINE void store(double *p, lanes v) { std::memcpy(p, &v, sizeof v); }

// Rows become columns.
INLINE void transpose(lanes r[8]) {
  lanes t[8], u[8];
  const bits even = {0, 8, 2, 10, 4, 12, 6, 14}, odd = {1, 9, 3, 11, 5, 13, 7, 15};
  UNROLL for (int i = 0; i < 8; i += 2) {
    t[i] = __builtin_shuffle(r[i], r[i + 1], even);
    t[i + 1] = __builtin_shuffle(r[i], r[i + 1], odd);
  }
  // quarters of 2, then halves of 4
  const bits first = {0, 1, 4, 5, 8, 9, 12, 13}, second = {2, 3, 6, 7, 10, 11, 14, 15};
  UNROLL for (int h = 0; h < 2; h++) UNROLL for (int o = 0; o < 2; o++) {
    u[4 * h + o] = __builtin_shuffle(t[4 * h + o], t[4 * h + 2 + o], first);
    u[4 * h + 2 + o] = __builtin_shuffle(t[4 * h + o], t[4 * h + 2 + o], second);
  }
  UNROLL for (int o = 0; o < 2; o++) {
    r[o] = __builtin_shuffle(u[o], u[4 + o], first);
    r[4 + o] = __builtin_shuffle(u[o], u[4 + o], second);
    r[2 + o] = __builtin_shuffle(u[2 + o], u[6 + o], first);
    r[6 + o] = __builtin_shuffle(u[2 + o], u[6 + o], second);
  }
}

static_assert(SIZE >= 2, "compile with -DSIZE=n");

// Eight records of `size` numbers, one after the other <-> one vector for each of the numbers.
// Records shorter than a vector are read and written beyond their ends: the caller's arrays have
// room for that, and the records are written in their order.
template <int size> INLINE void records_to_lanes(const double *p, lanes *out) {
  UNROLL for (int c = 0; c < size; c += 8) {
    const int start = c + 8 <= size || size < 8 ? c : size - 8;
    lanes r[8];
    UNROLL for (int l = 0; l < 8; l++) r[l] = load(p + l * size + start);
    transpose(r);
    UNROLL for (int k = 0; k < 8; k++) if (start + k < size) out[start + k] = r[k];
  }
}

template <int size> INLINE void lanes_to_records(const lanes *in, double *p) {
  UNROLL for (int c = 0; c < size; c += 8) {
    const int start = c + 8 <= size || size < 8 ? c : size - 8;
    lanes r[8];
    UNROLL for (int k = 0; k < 8; k++) r[k] = in[start + k < size ? start + k : start];
    transpose(r);
    UNROLL for (int l = 0; l < 8; l++) store(p + l * size + start, r[l]);
  }
}

// Records of 2, 3 or 4 numbers: gathered from the vectors that they fill.
template <int size> INLINE void packed_to_lanes(const lanes *z, lanes *out) {
  UNROLL for (int k = 0; k < size; k++) {
    out[k] = z[0];
    UNROLL for (int v = 1; v < size; v++) {
      bits take = {};
      UNROLL for (int l = 0; l < 8; l++) {
        const int from = l * size + k;
        // keep what is in place already; the first step moves the part of vector 0 as well
        const int kept = v == 1 ? from : l;
        take[l] = from / 8 == v ? 8 + from % 8 : from / 8 < v ? kept : l;
      }
      out[k] = __builtin_shuffle(out[k], z[v], take);
    }
  }
}

template <int size> INLINE void lanes_to_packed(const lanes *in, lanes *z) {
  UNROLL for (int v = 0; v < size; v++) {
    z[v] = in[0];
    UNROLL for (int k = 1; k < size; k++) {
      bits take = {};
      UNROLL for (int e = 0; e < 8; e++) {
        const int field = (8 * v + e) % size, lane = (8 * v + e) / size;
        const int kept = k == 1 ? lane : e;
        take[e] = field == k ? 8 + lane : field < k ? kept : e;
      }
      z[v] = __builtin_shuffle(z[v], in[k], take);
    }
  }
}

template <int n> INLINE void load_difference(const double *x, const double *mu, lanes *d) {
  if constexpr (n >= 2 && n <= 4) {
    lanes z[n];
    UNROLL for (int v = 0; v < n; v++) z[v] = load(x + 8 * v) - load(mu + 8 * v);
    packed_to_lanes<n>(z, d);
  } else {
    lanes m[n];
    records_to_lanes<n>(x, d);
    records_to_lanes<n>(mu, m);
    UNROLL for (int i = 0; i < n; i++) d[i] -= m[i];
  }
}

template <int n> INLINE void store_with_sign(const lanes *a, double *plus, double *minus) {
  if constexpr (n >= 2 && n <= 4) {
    lanes z[n];
    lanes_to_packed<n>(a, z);
    UNROLL for (int v = 0; v < n; v++) {
      store(plus + 8 * v, z[v]);
      store(minus + 8 * v, -z[v]);
    }
  } else {
    lanes negative[n];
    UNROLL for (int i = 0; i < n; i++) negative[i] = -a[i];
    lanes_to_records<n>(a, plus);
    lanes_to_records<n>(negative, minus);
  }
}

// The lower triangle of a 3 x 3 matrix fits one vector: entry (2, 2) takes the place of (0, 1),
// which nobody reads. Back, `slots` says which of eight numbers each entry is.
INLINE void triangle_to_lanes(const double *p, lanes *out) {
  lanes r[8];
  UNROLL for (int l = 0; l < 8; l++) {
    const lanes corner = all(p[9 * l + 8]);
    r[l] = __builtin_shuffle(load(p + 9 * l), corner, bits{0, 8, 2, 3, 4, 5, 6, 7});
  }
  transpose(r);
  UNROLL for (int k = 0; k < 8; k++) out[k] = r[k];
  out[8] = r[1];
}

INLINE void triangle_to_records(lanes r[8], const int (&slots)[9], double *p) {
  transpose(r);
  UNROLL for (int v = 0; v < 9; v++) {
    // these eight numbers belong to two neighbouring matrices
    const int first = v == 0 ? 0 : v - 1, second = v == 8 ? 7 : v;
    bits take = {};
    UNROLL for (int e = 0; e < 8; e++)
      take[e] = slots[(8 * v + e) % 9] + ((8 * v + e) / 9 == first ? 0 : 8);
    store(p + 8 * v, __builtin_shuffle(r[first], r[second], take));
  }
}

template <int n> INLINE void load_matrix(const double *p, lanes *out) {
  if constexpr (n == 3) triangle_to_lanes(p, out);
  else records_to_lanes<n * n>(p, out);
}

template <int n> INLINE void store_matrix(const lanes *in, double *p, bool symmetric) {
  if constexpr (n == 3) {
    lanes r[8] = {in[0], in[3], in[4], in[6], in[7], in[8], all(0), all(0)};
    if (symmetric) triangle_to_records(r, {0, 1, 3, 1, 2, 4, 3, 4, 5}, p);
    else triangle_to_records(r, {0, 6, 6, 1, 2, 6, 3, 4, 5}, p);
  } else lanes_to_records<n * n>(in, p);
}

// A running product of positive numbers, as a mantissa and an exponent in each lane.
struct Product {
  lanes mantissa = all(1), exponent = all(0);

  void normalise() {
    const bits b = (bits)mantissa;
    exponent += __builtin_convertvector((b >> 52) - 1023, lanes);
    mantissa = (lanes)((b & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000);
  }

  double log() const {
    double sum = 0;
    for (int l = 0; l < 8; l++) sum += std::log(mantissa[l]) + exponent[l] * M_LN2;
    return sum;
  }
};

// The lower triangle of a small matrix in registers, or where the compiler spills them.
template <int n> struct Covariance {
  INLINE void block(const double *x, const double *mu, const double *s, double *dx, double *dmu,
                      double *ds, Product &pivots, lanes &quaddist) {
    lanes m[n * n], r[n], w[n], a[n], out[n * n];
    load_matrix<n>(s, out);
    load_difference<n>(x, mu, w);

    // right-looking, the lower triangle of `out` becomes L and the pivots
    UNROLL for (int j = 0; j < n; j++) {
      r[j] = 1 / out[j * n + j];
      pivots.mantissa *= out[j * n + j];
      if (j % 4 == 3) pivots.normalise();
      lanes column[n];
      UNROLL for (int i = j + 1; i < n; i++) {
        column[i] = out[i * n + j];
        out[i * n + j] *= r[j];
      }
      UNROLL for (int i = j + 1; i < n; i++)
        UNROLL for (int k = j + 1; k <= i; k++) out[i * n + k] -= out[i * n + j] * column[k];
    }
    if (n % 4) pivots.normalise();

    UNROLL for (int j = 0; j < n; j++) UNROLL for (int i = j + 1; i < n; i++) {
      lanes sum = -out[i * n + j];
      UNROLL for (int k = j + 1; k < i; k++) sum -= out[i * n + k] * m[k * n + j];
      m[i * n + j] = sum;
    }
    UNROLL for (int i = n - 1; i >= 0; i--) {
      UNROLL for (int k = 0; k < i; k++) w[i] += m[i * n + k] * w[k];
    }
    UNROLL for (int i = 0; i < n; i++) {
      const lanes scaled = w[i] * r[i];
      quaddist += scaled * w[i];
      w[i] = scaled;
    }
    UNROLL for (int i = 0; i < n; i++) {
      a[i] = w[i];
      UNROLL for (int k = i + 1; k < n; k++) a[i] += m[k * n + i] * w[k];
    }
    store_with_sign<n>(a, dmu, dx);

    UNROLL for (int i = 0; i < n; i++) UNROLL for (int j = 0; j <= i; j++) {
      lanes inverse = i == j ? r[i] : m[i * n + j] * r[i];
      UNROLL for (int k = i + 1; k < n; k++) inverse += m[k * n + i] * r[k] * m[k * n + j];
      out[i * n + j] = out[j * n + i] = 0.5 * (a[i] * a[j] - inverse);
    }
    store_matrix<n>(out, ds, true);
  }
};

template <int n> struct Cholesky {
  INLINE void block(const double *x, const double *mu, const double *l, double *dx, double *dmu,
                      double *dl, Product &pivots, lanes &quaddist) {
    lanes m[n * n], r[n], z[n], a[n], out[n * n];
    load_matrix<n>(l, m);
    load_difference<n>(x, mu, z);
    UNROLL for (int i = 0; i < n; i++) {
      r[i] = 1 / m[i * n + i];
      pivots.mantissa *= m[i * n + i];
      if (i % 4 == 3) pivots.normalise();
    }
    if (n % 4) pivots.normalise();
    UNROLL for (int i = 0; i < n; i++) {
      UNROLL for (int k = 0; k < i; k++) z[i] -= m[i * n + k] * z[k];
      z[i] *= r[i];
      quaddist += z[i] * z[i];
    }
    UNROLL for (int i = n - 1; i >= 0; i--) {
      a[i] = z[i];
      UNROLL for (int k = i + 1; k < n; k++) a[i] -= m[k * n + i] * a[k];
      a[i] *= r[i];
    }
    store_with_sign<n>(a, dmu, dx);
    UNROLL for (int i = 0; i < n; i++) UNROLL for (int j = 0; j < n; j++)
      out[i * n + j] = j > i ? all(0) : i == j ? a[i] * z[i] - r[i] : a[i] * z[j];
    store_matrix<n>(out, dl, false);
  }
};

// Larger matrices: loops over tiles of T x T entries, whose sums stay in registers. One array holds
// everything, so that it stays in the nearest cache: L below the diagonal, and above it first L
// times its pivots, transposed, then the transpose of M; at last d/dS replaces it all.
constexpr int T = 3;

template <int n> struct TiledCovariance {
  static constexpr int N = (n + T - 1) / T * T; // padded by the identity
  static constexpr int P = N | 1;               // odd, or the columns fall on few cache sets

  INLINE void block(const double *x, const double *mu, const double *s, double *dx, double *dmu,
                    double *ds, Product &pivots, lanes &quaddist) {
    alignas(64) static thread_local lanes m[N * P];
    lanes r[N], w[N] = {}, a[N] = {};
    for (int i = 0; i < N; i++) {
      if (i < n)
        chunks(i + 1,
               [&](int start) { rows_to_lanes(s + i * n + start, n * n, m + i * P + start); });
      else
        for (int j = 0; j <= i; j++) m[i * P + j] = all(i == j);
    }
    chunks(n, [&](int start) { rows_to_lanes(x + start, n, w + start); });
    chunks(n, [&](int start) { rows_to_lanes(mu + start, n, a + start); });
    for (int i = 0; i < n; i++) w[i] -= a[i];

    factor(m, r, pivots);
    invert(m);

    for (int i = 0; i < N; i++) a[i] = all(0);
    for (int j = 0; j < n; j++)
      for (int i = j; i < n; i++) a[i] += m[j * P + i] * w[j];
    for (int i = 0; i < N; i++) {
      w[i] = a[i] * r[i];
      quaddist += w[i] * a[i];
    }
    for (int i = 0; i < n; i++) {
      lanes sum = all(0);
      for (int k = i; k < n; k++) sum += m[i * P + k] * w[k];
      a[i] = sum;
    }

    gradient(m, r, a);
    for (int i = 0; i < n; i++)
      chunks(n, [&](int start) { lanes_to_rows(m + i * P + start, ds + i * n + start, n * n); });
    for (int i = 0; i < n; i++) w[i] = -a[i];
    chunks(n, [&](int start) { lanes_to_rows(a + start, dmu + start, n); });
    chunks(n, [&](int start) { lanes_to_rows(w + start, dx + start, n); });
  }

  // Left-looking, by columns of tiles.
  INLINE void factor(lanes *m, lanes *r, Product &pivots) {
    for (int J = 0; J < N; J += T) {
      for (int I = J; I < N; I += T) {
        lanes c[T][T];
        tile([&](int i, int j) { c[i][j] = m[(I + i) * P + J + j]; });
        for (int k = 0; k < J; k++)
          tile([&](int i, int j) { c[i][j] -= m[(I + i) * P + k] * m[k * P + J + j]; });
        UNROLL for (int j = 0; j < T; j++) {
          if (I == J) {
            r[J + j] = 1 / c[j][j];
            pivots.mantissa *= c[j][j];
          }
          UNROLL for (int i = 0; i < T; i++) if (I > J || i > j) {
            const lanes low = c[i][j] * r[J + j];
            UNROLL for (int k = j + 1; k < T; k++) if (I > J || k <= i)
              c[i][k] -= low * (I > J ? m[(J + j) * P + J + k] : c[k][j]);
            m[(I + i) * P + J + j] = low;
          }
          UNROLL for (int i = 0; i < T; i++) if (I > J || i > j)
            m[(J + j) * P + I + i] = c[i][j];
        }
      }
      pivots.normalise();
    }
  }

  // The rows above the diagonal become the columns of M = L^-1, the diagonal becomes 1.
  INLINE void invert(lanes *m) {
    for (int J = 0; J < N; J += T)
      for (int I = J; I < N; I += T) {
        lanes c[T][T];
        tile([&](int i, int j) { c[i][j] = all(I == J && i == j); });
        if (I > J)
          UNROLL for (int k = 0; k < T; k++) tile([&](int i, int j) {
            if (k >= j) c[i][j] -= m[(I + i) * P + J + k] * m[(J + j) * P + J + k];
          });
        for (int k = J + T; k < I; k++)
          tile([&](int i, int j) { c[i][j] -= m[(I + i) * P + k] * m[(J + j) * P + k]; });
        UNROLL for (int k = 0; k < T; k++)
          tile([&](int i, int j) { if (i > k) c[i][j] -= m[(I + i) * P + I + k] * c[k][j]; });
        tile([&](int i, int j) { if (I > J || i <= j) m[(J + i) * P + I + j] = c[j][i]; });
      }
  }

  // The row of tiles I of S^-1 = M' D^-1 M needs what is right of column I, and no later row needs
  // what is left of the next: the result replaces it.
  INLINE void gradient(lanes *m, const lanes *r, const lanes *a) {
    for (int I = 0; I < N; I += T) {
      lanes row[T * N];
      for (int J = 0; J <= I; J += T) {
        lanes c[T][T];
        tile([&](int i, int j) { c[i][j] = a[I + i] * a[J + j]; });
        UNROLL for (int k = 0; k < T; k++) {
          lanes scaled[T];
          UNROLL for (int i = 0; i < T; i++)
            scaled[i] = i <= k ? m[(I + i) * P + I + k] * r[I + k] : all(0);
          tile([&](int i, int j) {
            if (i <= k && (J < I || j <= k)) c[i][j] -= scaled[i] * m[(J + j) * P + I + k];
          });
        }
        for (int k = I + T; k < N; k++) {
          lanes scaled[T];
          UNROLL for (int i = 0; i < T; i++) scaled[i] = m[(I + i) * P + k] * r[k];
          tile([&](int i, int j) { c[i][j] -= scaled[i] * m[(J + j) * P + k]; });
        }
        tile([&](int i, int j) { row[i * N + J + j] = 0.5 * c[i][j]; });
      }
      for (int i = 0; i < T; i++)
        for (int j = 0; j < I + T; j++) m[(I + i) * P + j] = m[j * P + I + i] = row[i * N + j];
    }
  }

  template <class F> INLINE void tile(F f) {
    UNROLL for (int i = 0; i < T; i++) UNROLL for (int j = 0; j < T; j++) f(i, j);
  }

  INLINE void rows_to_lanes(const double *p, int stride, lanes *out) {
    lanes v[8];
    UNROLL for (int l = 0; l < 8; l++) v[l] = load(p + l * stride);
    transpose(v);
    UNROLL for (int k = 0; k < 8; k++) out[k] = v[k];
  }

  INLINE void lanes_to_rows(const lanes *in, double *p, int stride) {
    lanes v[8];
    UNROLL for (int k = 0; k < 8; k++) v[k] = in[k];
    transpose(v);
    UNROLL for (int l = 0; l < 8; l++) store(p + l * stride, v[l]);
  }

  // Starts of chunks of eight that cover `size` of n numbers; the last may overlap the one before.
  template <class F> INLINE void chunks(int size, F &&f) {
    for (int c = 0; c < size; c += 8) f(c + 8 <= n ? c : n - 8);
  }
};

// All blocks of eight; the last ones through padded copies, so that no block reads or writes beyond
// the end of an array.
template <class Kernel, int n>
static double run(long count, const double *x, const double *mu, const double *matrix, double *dx,
                  double *dmu, double *dmatrix) {
  Product pivots;
  lanes quaddist = all(0);
  // a block of short records touches up to seven numbers behind it
  const long blocks = (count - 1) / 8;
  for (long b = 0; b < blocks; b++)
    Kernel::block(x + b * 8 * n, mu + b * 8 * n, matrix + b * 8 * n * n, dx + b * 8 * n,
                  dmu + b * 8 * n, dmatrix + b * 8 * n * n, pivots, quaddist);

  const long done = blocks * 8, rest = count - done;
  static thread_local double in[3][8 * n * n + 8], out[3][8 * n * n + 8];
  for (int l = 0; l < 8; l++)
    for (int i = 0; i < n; i++) {
      in[0][l * n + i] = in[1][l * n + i] = 0;
      for (int j = 0; j < n; j++) in[2][(l * n + i) * n + j] = i == j;
    }
  std::memcpy(in[0], x + done * n, rest * n * sizeof(double));
  std::memcpy(in[1], mu + done * n, rest * n * sizeof(double));
  std::memcpy(in[2], matrix + done * n * n, rest * n * n * sizeof(double));
  Kernel::block(in[0], in[1], in[2], out[0], out[1], out[2], pivots, quaddist);
  std::memcpy(dx + done * n, out[0], rest * n * sizeof(double));
  std::memcpy(dmu + done * n, out[1], rest * n * sizeof(double));
  std::memcpy(dmatrix + done * n * n, out[2], rest * n * n * sizeof(double));

  double sum = 0;
  for (int l = 0; l < 8; l++) sum += quaddist[l];
  const double half = std::is_same_v<Kernel, Cholesky<n>> ? 1 : 0.5;
  return -0.5 * sum - half * pivots.log() - 0.5 * count * n * std::log(2 * M_PI);
}

template <int n>
using CovarianceKernel = std::conditional_t<(n <= 12), Covariance<n>, TiledCovariance<n>>;

extern "C" double limit_cov(long count, const double *x, const double *mu, const double *matrix,
                            double *dx, double *dmu, double *dmatrix) {
  return run<CovarianceKernel<SIZE>, SIZE>(count, x, mu, matrix, dx, dmu, dmatrix);
}

#if SIZE <= 12
extern "C" double limit_chol(long count, const double *x, const double *mu, const double *matrix,
                             double *dx, double *dmu, double *dmatrix) {
  return run<Cholesky<SIZE>, SIZE>(count, x, mu, matrix, dx, dmu, dmatrix);
}
#endif
