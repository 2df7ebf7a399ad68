// Rows of a table, scaled, with rows of a table of positions added.
#include "../native/rows.h"

namespace TUILI_ISA {

static void embed_rows(const void* args, const TuiliStep*, int64_t begin, int64_t end, const TuiliThread*) {
    const TuiliEmbedArgs& a = *(const TuiliEmbedArgs*)args;
    const int n = a.width;
    for (int64_t row = begin; row < end; row++) {
        const int64_t entry = a.token_ids[row] - a.first;
        TUILI_WITH_FLOAT(a.table_dtype, T, TUILI_WITH_FLOAT(a.out_dtype, O, {
            const bool held = entry >= 0 && entry < a.rows;
            const T* source = TUILI_ROW(const T, a.table, held ? entry : 0, n);
            O* target = TUILI_ROW(O, a.out, row, n);
            if (!held) {
                memset(target, 0, n * sizeof(O));
            } else if (a.positions != nullptr) {
                const T* position = TUILI_ROW(const T, a.position_table, a.positions[row], n);
                const F scale = set1(a.scale);
                for (int i = 0; i < n; i += W)
                    store_at(target, i, n, fma(load_at(source, i, n), scale, load_at(position, i, n)));
            } else if (a.scale != 1.0f) {
                for (int i = 0; i < n; i += W) store_at(target, i, n, mul(load_at(source, i, n), set1(a.scale)));
            } else {
                for (int i = 0; i < n; i += W) store_at(target, i, n, load_at(source, i, n));
            }
        }));
    }
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(embed) = {"embed", sizeof(TuiliEmbedArgs), nullptr, nullptr, TUILI_ISA::embed_rows};
