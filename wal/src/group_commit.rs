//! stub until the real one
pub struct GroupCommit<T, R>(std::marker::PhantomData<(T, R)>);
pub struct Announcement<'a, T, R>(&'a GroupCommit<T, R>);
#[derive(Debug)]
pub struct Abandoned;
impl<T, R> GroupCommit<T, R> {
    pub fn new() -> Self {
        Self(std::marker::PhantomData)
    }
    pub fn announce(&self) -> Announcement<'_, T, R> {
        Announcement(self)
    }
}
impl<T, R> Announcement<'_, T, R> {
    pub fn submit(self, item: T, lead: impl FnOnce(Vec<T>) -> Vec<R>) -> Result<R, Abandoned> {
        lead(vec![item]).pop().ok_or(Abandoned)
    }
}
